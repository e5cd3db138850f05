"""API keys: shown once, kept as a hash, looked up before anyone knows whose they are."""

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.access.principals import find_principal
from app.access.tenants import tenant_name
from app.db.session import Asker, become
from app.errors import NotFoundError, UnauthorizedError, UsageError

SCOPES = ("read", "write", "admin")
LONGEST = 3650
"""Days that a key may last."""

_TOKEN = re.compile(r"mb_([0-9]{1,18})-([0-9]{1,18})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


@dataclass(frozen=True)
class Issued:
    """A new key. `token` is shown this once and can never be told again."""

    id: str
    expires: datetime
    token: str = field(repr=False)


@dataclass(frozen=True)
class Holder:
    """Whom a key stands for, tenant and principal by name, and what it may do."""

    asker: Asker
    tenant: str
    principal: str
    scopes: frozenset[str]


def issue(
    connection: Connection,
    tenant: int,
    principal: str,
    scopes: Collection[str] = ("read",),
    days: int = 365,
    name: str = "",
) -> Issued:
    """Make a key of a principal that lasts so many days, as an administrator.

    Raises UsageError for an unknown scope, days out of range or a name that is too long;
    NotFoundError for the principal.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise UsageError(f"{(unknown or [''])[0]!r} is no scope: {', '.join(SCOPES)}")
    if not 1 <= days <= LONGEST:
        raise UsageError(f"a key cannot last {days} days: give 1 to {LONGEST}")
    if len(name) > 200 or not name.isprintable():
        raise UsageError("the key's name must be at most 200 printable characters")
    owner = find_principal(connection, tenant, principal)
    secret = secrets.token_urlsafe(32)
    row = connection.execute(
        text(
            "INSERT INTO api_key (tenant_id, principal_id, name, hash, scopes, expires_at)"
            " VALUES (:tenant, :principal, :name, :hash, :scopes,"
            " now() + make_interval(days => :days)) RETURNING id, expires_at"
        ),
        {
            "tenant": owner.tenant,
            "principal": owner.principal,
            "name": name,
            "hash": _hash(secret),
            "scopes": [scope for scope in SCOPES if scope in scopes],
            "days": days,
        },
    ).one()
    number = f"{owner.tenant}-{row.id}"
    return Issued(number, row.expires_at, f"mb_{number}_{secret}")


def keys(connection: Connection, tenant: int) -> list[dict[str, Any]]:
    """All keys of a tenant, the newest first, without hashes; for an administrator to see.

    Times are of the database.
    """
    rows = connection.execute(
        text(
            "SELECT k.tenant_id || '-' || k.id AS id, p.name AS principal, k.name, k.scopes,"
            " CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'"
            " WHEN k.expires_at <= now() THEN 'expired' ELSE 'good' END AS state,"
            " k.created_at AS created, k.expires_at AS expires, k.revoked_at AS revoked,"
            " k.last_used_at AS last_used"
            " FROM api_key k JOIN principal p"
            " ON p.tenant_id = k.tenant_id AND p.id = k.principal_id"
            " WHERE k.tenant_id = :tenant ORDER BY k.id DESC"
        ),
        {"tenant": tenant},
    )
    return [dict(row) for row in rows.mappings()]


def revoke(connection: Connection, tenant: int, key: str) -> None:
    """Let a key, named by its id, count no more; for an administrator to do.

    Raises NotFoundError.
    """
    parts = _ID.fullmatch(key)
    found = 0
    if parts and int(parts[1]) == tenant:
        found = connection.execute(
            text(
                "UPDATE api_key SET revoked_at = coalesce(revoked_at, now())"
                " WHERE tenant_id = :tenant AND id = :id"
            ),
            {"tenant": tenant, "id": int(parts[2])},
        ).rowcount
    if not found:
        name = tenant_name(connection, tenant)
        # What was given may be a whole token by mistake, so it is not repeated.
        raise NotFoundError(
            f"tenant {name!r} has no such key: give its id, such as 1-7, as"
            f" membank key list --tenant {name!r} prints it"
        )


def find(connection: Connection, token: str) -> Holder:
    """Whom a key stands for; notes its use.

    The transaction, of the role app and without a tenant before, is for the key's principal from
    then on.

    Raises UnauthorizedError. Only who has the secret is told that a key expired or was revoked.
    """
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        raise _invalid()
    tenant, key = int(parts[1]), int(parts[2])
    row = connection.execute(
        text("SELECT * FROM find_key(:tenant, :key, :hash)"),
        {"tenant": tenant, "key": key, "hash": _hash(parts[3])},
    ).one_or_none()
    if row is None:
        raise _invalid()
    if row.fault is None:
        asker = Asker("app", tenant, row.principal_id)
        become(connection, asker)
        names = connection.execute(_NAMES, asdict(asker)).one_or_none()
        if names is None:  # deleted between the two looks
            raise _invalid()
        return Holder(asker, names[0], names[1], frozenset(row.scopes))
    why = f"expired on {row.expires_at:%Y-%m-%d}" if row.fault == "expired" else "was revoked"
    raise UnauthorizedError(f"API key {tenant}-{key} {why}: membank key issue makes a new one")


_NAMES = text(
    "SELECT t.name, p.name FROM principal p JOIN tenant t ON t.id = p.tenant_id"
    " WHERE p.tenant_id = :tenant AND p.id = :principal"
)


def _invalid() -> UnauthorizedError:
    return UnauthorizedError("the API key is not valid: membank key issue makes one")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
