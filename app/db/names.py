"""Names that people give: of tenants, principals, groups and banks."""

from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, IntegrityError

from app.errors import ConflictError, UsageError


def named(name: str, what: str) -> str:
    """A name as it is kept. Raises UsageError for one that cannot name a `what`."""
    clean = name.strip()
    if not 1 <= len(clean) <= 200 or not clean.isprintable():
        raise UsageError(f"{name!r} cannot name a {what}: 1 to 200 printable characters")
    return clean


def storable(name: str) -> str:
    """A name to look for: Postgres text holds no NUL, and a name with one matches nothing."""
    return name.replace("\x00", "\ufffd")


def insert(connection: Connection, what: str, statement: str, **values: object) -> int:
    """Run an INSERT of something with a name of its own; the id it returns.

    Raises ConflictError when the name is taken, UsageError for a value that cannot be stored.
    """
    try:
        return int(connection.execute(text(statement), values).scalar_one())
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) == "23505":
            raise ConflictError(f"{what} exists already: choose another name") from None
        raise
    except DataError as error:
        raise UsageError(f"{what}: {str(error.orig).strip()}") from None
