"""What must be true of the database so that one tenant's rows stay its own."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.db.addresses import TENANT_GROUP, role_name
from app.db.sql import statements

# The minor releases of 2026-05-14 close holes that let a role read past its policies.
_LEAST_MINOR = {16: 14, 17: 10, 18: 4}
_LEAST_PGVECTOR = (0, 8, 4)


@dataclass(frozen=True)
class Check:
    """One thing that must be true of the database."""

    name: str
    good: bool
    detail: str

    @classmethod
    def of(cls, name: str, faults: list[str], well: str) -> "Check":
        return cls(name, not faults, "; ".join(faults) or well)


def postgres_fault(number: int) -> str | None:
    """What is wrong with a server of that server_version_num."""
    major, minor = divmod(number, 10_000)
    least = _LEAST_MINOR.get(major, 0 if major > max(_LEAST_MINOR) else None)
    if least is None:
        return f"Postgres {major} is too old: {min(_LEAST_MINOR)} or newer is needed"
    if minor < least:
        return f"Postgres {major}.{minor} has known holes: {major}.{least} or newer is needed"
    return None


def pgvector_fault(version: str | None) -> str | None:
    """What is wrong with that version of pgvector, None being none at all."""
    if version is None:
        return "pgvector is missing: 0.8.4 or newer is needed"
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < _LEAST_PGVECTOR:
        return f"pgvector {version} is too old: 0.8.4 or newer is needed"
    return None


def versions(connection: Connection) -> Check:
    number, vector = connection.execute(
        text(
            "SELECT current_setting('server_version_num')::int,"
            " (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        )
    ).one()
    faults = [f for f in (postgres_fault(number), pgvector_fault(vector)) if f]
    major, minor = divmod(number, 10_000)
    return Check.of("versions", faults, f"Postgres {major}.{minor}, pgvector {vector}")


_SQL = statements(__file__)
_POWERS = text(_SQL["powers"])


def check_role(connection: Connection, name: str) -> Check:
    """That a role has no way around the policies, by itself or by membership."""
    faults = _powers(connection, name)
    return Check.of(f"role {name}", faults, "bound by row-level security")


def tenant_roles(connection: Connection) -> Check:
    """The same for the tenants' psql roles, all of them."""
    members = connection.execute(
        text(
            "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member"
            " JOIN pg_roles g ON g.oid = m.roleid WHERE g.rolname = :group"
            # Whoever made the group administers it, without having its rights.
            " AND (m.inherit_option OR m.set_option) ORDER BY 1"
        ),
        {"group": TENANT_GROUP},
    ).scalars()
    names = list(members)
    faults = _powers(connection, TENANT_GROUP)
    for name in names:
        faults += [f"{name} {fault}" for fault in _powers(connection, name)]
    return Check.of(f"role {TENANT_GROUP}", faults, f"bound, and its {len(names)} members")


def _powers(connection: Connection, name: str) -> list[str]:
    rows = connection.execute(_POWERS, {"name": name}).all()
    if not rows:
        return ["does not exist"]
    faults = []
    for row in rows:
        if row.itself:
            faults += row.powers
        elif row.powers or row.role != TENANT_GROUP:
            # Policies for a role hold for its members too: no other may be taken on.
            faults.append(
                f"is member of {row.role}, which {' and '.join(row.powers)}"
                if row.powers
                else f"is member of {row.role}"
            )
    return faults


_OPEN = text(_SQL["without_floor"])


def row_security(connection: Connection) -> Check:
    rows = connection.execute(
        _OPEN,
        {
            "roles": [role_name("app"), role_name("worker"), TENANT_GROUP],
            "worker": role_name("worker"),
        },
    )
    told: dict[str, list[str]] = {}
    for row in rows:
        told.setdefault(row.fault, []).append(row.relname)
    faults = [fault + ", ".join(names) for fault, names in sorted(told.items(), reverse=True)]
    return Check.of(
        "row-level security", faults, "forced, with policies and a floor, on every table"
    )


_LOOSE = text(_SQL["loose"])


def views_and_functions(connection: Connection) -> Check:
    faults = list(connection.execute(_LOOSE).scalars())
    return Check.of("views and functions", faults, "with the rights of who calls them")
