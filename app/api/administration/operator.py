"""On whose behalf the routes of administration act."""

from app.access.identity import Identity
from app.db.addresses import DatabaseRole
from app.db.session import Asker


def operator(who: Identity, role: DatabaseRole) -> Asker:
    """The caller's tenant, logged in as `role`: the key's scope decides, not a role in a bank."""
    return Asker(role, tenant_of(who))


def administrator(who: Identity) -> Asker:
    return operator(who, "admin")


def tenant_of(who: Identity) -> int:
    if who.asker.tenant is None:
        raise AssertionError("every caller has a tenant")
    return who.asker.tenant
