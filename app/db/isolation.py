"""What must be true of the database so that one tenant's rows stay its own."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.db.addresses import TENANT_GROUP, role_name

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


# The role itself and every role whose rights it has or may take.
_POWERS = text(
    """
    WITH RECURSIVE held(oid) AS (
        SELECT oid FROM pg_roles WHERE rolname = :name
        UNION SELECT m.roleid FROM pg_auth_members m JOIN held ON m.member = held.oid
    )
    SELECT r.rolname AS role, r.rolname = :name AS itself, array_remove(ARRAY[
        CASE WHEN rolsuper THEN 'is superuser' END,
        CASE WHEN rolbypassrls THEN 'bypasses RLS' END,
        CASE WHEN rolreplication THEN 'replicates' END,
        CASE WHEN rolcreaterole THEN 'makes roles' END,
        CASE WHEN EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid
            AND c.relnamespace = 'public'::regnamespace) THEN 'owns tables' END,
        CASE WHEN EXISTS (SELECT FROM pg_proc p WHERE p.proowner = r.oid
            AND p.pronamespace = 'public'::regnamespace) THEN 'owns functions' END,
        CASE WHEN EXISTS (SELECT FROM pg_database d WHERE d.datdba = r.oid
            AND d.datname = current_database()) THEN 'owns the database' END,
        CASE WHEN r.rolname LIKE 'pg\\_%' THEN 'sees more than rows' END,
        CASE WHEN r.rolname = :name AND NOT rolsuper
            AND has_database_privilege(r.oid, current_database(), 'TEMPORARY')
            THEN 'may make temporary tables (membank migrate forbids it)' END,
        CASE WHEN r.rolname = :name AND NOT rolsuper
            AND has_schema_privilege(r.oid, 'public', 'CREATE')
            THEN 'may create in the schema public' END
    ], NULL) AS powers
    FROM held JOIN pg_roles r USING (oid) ORDER BY 2 DESC, 1
    """
)


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


# Without a floor a table shows every row that a permissive policy lets pass. The worker takes
# work of all tenants in turn, so for it the outbox has none.
_OPEN = text(
    """
    SELECT relname, CASE
        WHEN NOT (relrowsecurity AND relforcerowsecurity) THEN 'off on '
        WHEN NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) THEN 'no policy on '
        ELSE 'no floor for a role on ' END AS fault
    FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
        AND relname <> 'alembic_version'
        AND (NOT (relrowsecurity AND relforcerowsecurity)
            OR NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)
            OR EXISTS (
                SELECT FROM pg_roles r WHERE r.rolname = ANY(:roles)
                AND (c.relname, r.rolname) <> ('outbox', :worker)
                AND r.oid IN (
                    SELECT grantee FROM aclexplode(c.relacl)
                    UNION ALL SELECT a.grantee FROM pg_attribute t, aclexplode(t.attacl) a
                    WHERE t.attrelid = c.oid)
                AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid
                    AND NOT p.polpermissive AND p.polcmd = '*' AND r.oid = ANY(p.polroles))))
    ORDER BY 1
    """
)


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


_LOOSE = text(
    """
    SELECT relname || ' is open to PUBLIC' FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace
        AND EXISTS (SELECT FROM aclexplode(c.relacl) WHERE grantee = 0)
    UNION ALL
    SELECT relname || ' is a view that reads with its owner''s rights' FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'
        AND NOT coalesce('security_invoker=true' = ANY(reloptions), false)
    UNION ALL
    SELECT relname || ' keeps rows that no policy guards' FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('m', 'f')
    UNION ALL
    SELECT proname || ' runs with its owner''s rights for everyone' FROM pg_proc p
    WHERE pronamespace = 'public'::regnamespace AND prosecdef
        AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0))
    UNION ALL
    SELECT proname || ' looks names up where its caller says' FROM pg_proc p
    WHERE pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM unnest(proconfig) s
            WHERE s LIKE 'search_path=pg_catalog%, pg_temp')
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    ORDER BY 1
    """
)


def views_and_functions(connection: Connection) -> Check:
    faults = list(connection.execute(_LOOSE).scalars())
    return Check.of("views and functions", faults, "with the rights of who calls them")
