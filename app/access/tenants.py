"""Tenants: made by an administrator, looked up by name."""

from sqlalchemy import text

from app.db.names import insert, named, storable
from app.db.session import Asker, transaction
from app.errors import NotFoundError


def add_tenant(name: str) -> int:
    """Make a tenant; its id. Raises ConflictError when the name is taken."""
    with transaction(Asker("admin")) as connection:
        return insert(
            connection,
            f"tenant {name!r}",
            "INSERT INTO tenant (name) VALUES (:name) RETURNING id",
            name=named(name, "tenant"),
        )


def pause_tenant(name: str, paused: bool) -> None:
    """Let workers leave a tenant's work alone, or take it again. Raises NotFoundError."""
    owner = tenant_id(name)
    with transaction(Asker("admin", owner)) as connection:
        connection.execute(
            text("UPDATE tenant SET paused = :paused WHERE id = :id"),
            {"paused": paused, "id": owner},
        )


def paused_name(tenant: int) -> str | None:
    """The tenant's name if it is paused."""
    with transaction(Asker("app", tenant)) as connection:
        return connection.execute(
            text("SELECT name FROM tenant WHERE id = :id AND paused"), {"id": tenant}
        ).scalar()


def tenant_id(name: str) -> int:
    """Raises NotFoundError that says how to make the tenant."""
    with transaction(Asker("app")) as connection:
        found = connection.execute(
            text("SELECT find_tenant(:name)"), {"name": storable(name)}
        ).scalar()
    if found is None:
        raise NotFoundError(f"tenant {name!r} does not exist: membank tenant add {name!r}")
    return int(found)
