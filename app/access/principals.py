"""The principals of a tenant and the groups they are in."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from app.access.tenants import tenant_name
from app.db.names import named, storable
from app.db.session import Asker
from app.errors import NotFoundError


def principals(connection: Connection, tenant: int) -> dict[str, list[str]]:
    """Name of each principal -> its groups."""
    return _listed(
        connection,
        tenant,
        "SELECT p.name, array_remove(array_agg(g.name ORDER BY g.name), NULL) FROM principal p"
        " LEFT JOIN group_member m ON m.tenant_id = p.tenant_id AND m.principal_id = p.id"
        " LEFT JOIN principal_group g ON g.tenant_id = m.tenant_id AND g.id = m.group_id"
        " WHERE p.tenant_id = :tenant GROUP BY p.name ORDER BY p.name",
    )


def groups(connection: Connection, tenant: int) -> dict[str, list[str]]:
    """Name of each group -> its principals."""
    return _listed(
        connection,
        tenant,
        "SELECT g.name, array_remove(array_agg(p.name ORDER BY p.name), NULL)"
        " FROM principal_group g"
        " LEFT JOIN group_member m ON m.tenant_id = g.tenant_id AND m.group_id = g.id"
        " LEFT JOIN principal p ON p.tenant_id = m.tenant_id AND p.id = m.principal_id"
        " WHERE g.tenant_id = :tenant GROUP BY g.name ORDER BY g.name",
    )


def remove_principal(connection: Connection, tenant: int, name: str) -> None:
    """Delete a principal, as an administrator: its keys count no more, and its name is on no list,
    so that one who gets the name later reads nothing of the first. Raises NotFoundError."""
    gone = find_principal(connection, tenant, name)
    values = {"tenant": tenant, "id": gone.principal, "entry": f"principal:{name}"}
    for statement in _REMOVE:
        connection.execute(text(statement), values)


_REMOVE = (
    "DELETE FROM principal WHERE tenant_id = :tenant AND id = :id",
    "DELETE FROM bank_member WHERE tenant_id = :tenant AND grantee = :entry",
    "UPDATE document SET access = array_remove(access, :entry)"
    " WHERE tenant_id = :tenant AND access @> ARRAY[:entry]",
)


def _listed(connection: Connection, tenant: int, statement: str) -> dict[str, list[str]]:
    return {
        name: list(others)
        for name, others in connection.execute(text(statement), {"tenant": tenant})
    }


def add_principal(
    connection: Connection, tenant: int, name: str, groups: Sequence[str] = ()
) -> int:
    """Make a principal and the groups it names, as an administrator; its id. An existing principal
    joins the groups."""
    principal = connection.execute(
        text(
            "INSERT INTO principal (tenant_id, name) VALUES (:tenant, :name)"
            " ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name RETURNING id"
        ),
        {"tenant": tenant, "name": named(name, "principal")},
    ).scalar_one()
    for group in groups:
        _join(connection, tenant, group, principal)
    return int(principal)


def join_group(connection: Connection, tenant: int, group: str, principal: str) -> None:
    """Let a principal be in a group, which is made if it is new; for an administrator to do.

    Raises NotFoundError.
    """
    _join(connection, tenant, group, find_principal(connection, tenant, principal).principal)


def leave_group(connection: Connection, tenant: int, group: str, principal: str) -> None:
    """Take a principal out of a group, from the next question on; for an administrator to do.

    Raises NotFoundError.
    """
    member = find_principal(connection, tenant, principal)
    left = connection.execute(
        text(
            "DELETE FROM group_member m USING principal_group g"
            " WHERE m.tenant_id = :tenant AND m.principal_id = :principal"
            " AND g.tenant_id = m.tenant_id AND g.id = m.group_id AND g.name = :name"
        ),
        {"tenant": tenant, "principal": member.principal, "name": storable(group)},
    ).rowcount
    if not left:
        raise NotFoundError(f"principal {principal!r} is not in group {group!r}: nothing to remove")


def find_principal(connection: Connection, tenant: int, name: str) -> Asker:
    """The reader that a principal's questions are asked as. Raises NotFoundError."""
    found = connection.execute(
        text("SELECT id FROM principal WHERE tenant_id = :tenant AND name = :name"),
        {"tenant": tenant, "name": storable(name)},
    ).scalar()
    if found is None:
        of = tenant_name(connection, tenant)
        raise NotFoundError(
            f"principal {name!r} of tenant {of!r} does not exist:"
            f" membank principal add {name!r} --tenant {of!r}"
        )
    return Asker("app", tenant, found)


def _join(connection: Connection, tenant: int | None, group: str, principal: int | None) -> None:
    connection.execute(
        text(
            "WITH g AS (INSERT INTO principal_group (tenant_id, name) VALUES (:tenant, :name)"
            " ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name RETURNING id)"
            " INSERT INTO group_member (tenant_id, group_id, principal_id)"
            " SELECT :tenant, id, :principal FROM g ON CONFLICT DO NOTHING"
        ),
        {"tenant": tenant, "name": named(group, "group"), "principal": principal},
    )
