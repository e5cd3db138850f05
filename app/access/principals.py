"""The principals and groups of a tenant, listed, and principals taken away."""

from sqlalchemy import text

from app.access.tenants import find_principal, tenant_id
from app.bank.session import Asker, transaction


def principals(tenant: str) -> dict[str, list[str]]:
    """Name of each principal -> its groups. Raises NotFoundError."""
    return _listed(
        tenant,
        "SELECT p.name, array_remove(array_agg(g.name ORDER BY g.name), NULL) FROM principal p"
        " LEFT JOIN group_member m ON m.tenant_id = p.tenant_id AND m.principal_id = p.id"
        " LEFT JOIN principal_group g ON g.tenant_id = m.tenant_id AND g.id = m.group_id"
        " WHERE p.tenant_id = :tenant GROUP BY p.name ORDER BY p.name",
    )


def groups(tenant: str) -> dict[str, list[str]]:
    """Name of each group -> its principals. Raises NotFoundError."""
    return _listed(
        tenant,
        "SELECT g.name, array_remove(array_agg(p.name ORDER BY p.name), NULL)"
        " FROM principal_group g"
        " LEFT JOIN group_member m ON m.tenant_id = g.tenant_id AND m.group_id = g.id"
        " LEFT JOIN principal p ON p.tenant_id = m.tenant_id AND p.id = m.principal_id"
        " WHERE g.tenant_id = :tenant GROUP BY g.name ORDER BY g.name",
    )


def remove_principal(tenant: str, name: str) -> None:
    """Delete a principal: its keys count no more, and its name is on no list, so that one who gets
    the name later reads nothing of the first. Raises NotFoundError."""
    gone = find_principal(tenant, name)
    values = {"tenant": gone.tenant, "id": gone.principal, "entry": f"principal:{name}"}
    with transaction(Asker("admin", gone.tenant)) as connection:
        for statement in _REMOVE:
            connection.execute(text(statement), values)


_REMOVE = (
    "DELETE FROM principal WHERE tenant_id = :tenant AND id = :id",
    "DELETE FROM bank_member WHERE tenant_id = :tenant AND grantee = :entry",
    "UPDATE document SET access = array_remove(access, :entry)"
    " WHERE tenant_id = :tenant AND access @> ARRAY[:entry]",
)


def _listed(tenant: str, statement: str) -> dict[str, list[str]]:
    owner = tenant_id(tenant)
    with transaction(Asker("admin", owner)) as connection:
        return {
            name: list(others)
            for name, others in connection.execute(text(statement), {"tenant": owner})
        }
