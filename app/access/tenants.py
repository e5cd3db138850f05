"""Tenants: made by an administrator, looked up by name."""

import contextlib
from collections.abc import Iterator

from sqlalchemy import Connection, text

from app.db.addresses import DatabaseRole
from app.db.names import insert, named, storable
from app.db.session import Asker, become, transaction
from app.errors import NotFoundError


@contextlib.contextmanager
def of_tenant(role: DatabaseRole, name: str) -> Iterator[tuple[Connection, Asker]]:
    """A transaction for a tenant that is known by name, and whom it is for: an operator.

    Raises NotFoundError that says how to make the tenant, and what `transaction` raises.
    """
    with transaction(Asker(role)) as connection:
        asker = Asker(role, tenant_id(connection, name))
        become(connection, asker)
        yield connection, asker


def add_tenant(connection: Connection, name: str) -> int:
    """Make a tenant, as an administrator; its id. Raises ConflictError when the name is taken."""
    return insert(
        connection,
        f"tenant {name!r}",
        "INSERT INTO tenant (name) VALUES (:name) RETURNING id",
        name=named(name, "tenant"),
    )


def pause_tenant(connection: Connection, tenant: int, paused: bool) -> None:
    """Let workers leave a tenant's work alone, or take it again; for an administrator to do."""
    connection.execute(
        text("UPDATE tenant SET paused = :paused WHERE id = :id"),
        {"paused": paused, "id": tenant},
    )


def paused_name(connection: Connection, tenant: int) -> str | None:
    """The tenant's name if it is paused."""
    return connection.execute(
        text("SELECT name FROM tenant WHERE id = :id AND paused"), {"id": tenant}
    ).scalar()


def tenant_name(connection: Connection, tenant: int) -> str:
    """The name of a tenant that there is."""
    return str(
        connection.execute(text("SELECT name FROM tenant WHERE id = :id"), {"id": tenant}).scalar()
    )


def tenant_id(connection: Connection, name: str) -> int:
    """The id of a tenant, in a transaction of any role. Raises NotFoundError that says how to make
    the tenant."""
    found = connection.execute(text("SELECT find_tenant(:name)"), {"name": storable(name)}).scalar()
    if found is None:
        raise NotFoundError(f"tenant {name!r} does not exist: membank tenant add {name!r}")
    return int(found)
