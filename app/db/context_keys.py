"""The keys that the database accepts who is asking from."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from app.db.addresses import database_url
from app.db.session import outside
from app.db.signing import Key, context_key, ensure_context_key, given_by_settings, keep, new_secret
from app.errors import UsageError

_ADD = text(
    "INSERT INTO context_key (id, inner_pad, outer_pad) VALUES (:id, :inner, :outer)"
    " ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True)
class Rotation:
    """The new key's name, and until when the old ones count as well."""

    key: str
    old_keys: int
    until: datetime


def install() -> None:
    """Let the database know this process's key, made if there is none. A key that was replaced
    stays replaced."""
    with outside(database_url("owner")) as connection, connection.begin():
        add(connection, ensure_context_key())


def rotate(hours: float) -> Rotation:
    """Sign with a new key from now on; signatures of the old ones count for `hours` more.

    The new key is the one that MEMBANK_CONTEXT_KEY gives, else a fresh one in HOME/context.key.
    Raises UsageError when the database knows the given one already.
    """
    secret = None if given_by_settings() else new_secret()
    key = context_key() if secret is None else Key.of(secret)
    with outside(database_url("owner")) as connection, connection.begin():
        if not add(connection, key):
            raise UsageError(
                "MEMBANK_CONTEXT_KEY is a key that the database knows already: set it to a new one"
                " (openssl rand -hex 32), then rotate, then give it to the other processes"
            )
        # A key whose time is over is forgotten, but not its name, or it could come back.
        connection.execute(
            text("UPDATE context_key SET inner_pad = '', outer_pad = '' WHERE valid_until <= now()")
        )
        until = connection.execute(
            text(
                "UPDATE context_key"
                " SET valid_until = least(valid_until, now() + make_interval(secs => :seconds))"
                " WHERE id <> :id AND valid_until > now() RETURNING valid_until"
            ),
            {"seconds": hours * 3600, "id": key.id},
        ).scalars()
        ends = list(until)
        now = connection.execute(text("SELECT now()")).scalar_one()
    if secret is not None:
        keep(secret)
    return Rotation(key.id, len(ends), max(ends, default=now))


def add(connection: Connection, key: Key) -> bool:
    """Make a key known, as the owner; False when it was, or had been replaced."""
    values = {"id": key.id, "inner": key.inner, "outer": key.outer}
    return connection.execute(_ADD, values).rowcount == 1
