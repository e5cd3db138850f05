"""Make and check the database: roles, extension, migrations, row-level security."""

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import URL, Connection, Engine, create_engine, pool, text
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError

from app.addresses import ROLES, Role, database_url, provisioning_url, role_name
from app.bank.session import Asker, driver_of, transaction
from app.errors import MembankError, UnavailableError

_LEAST_POSTGRES, _LEAST_PGVECTOR = 160_000, (0, 8, 4)
_ROOT = Path(__file__).parents[2]
# Roles belong to the server, advisory locks to a database: whoever provisions another database
# may alter or create the same role. "tuple concurrently updated", unique and duplicate names.
_RACES = ("XX000", "23505", "42710")


@dataclass(frozen=True)
class Check:
    """One thing that must be true of the database."""

    name: str
    good: bool
    detail: str


def provision() -> None:
    """Create the extension and the four roles where they are missing, then migrate.

    Needs an administrator in MEMBANK_DATABASE_URL (or the embedded server). With the app's own
    URL there, everything must exist already and only the migrations run.
    Raises UnavailableError or MembankError that says what is missing.
    """
    url = provisioning_url()
    if url.username != role_name("app"):
        with _connected(url, "AUTOCOMMIT") as connection:
            _require_versions(connection)
            # Two stacks may be provisioned on one server at the same time.
            connection.execute(text("SELECT pg_advisory_lock(727267)"))
            for role in ROLES:
                _ensure_role(connection, role)
            _ensure_pgvector(connection)
            connection.exec_driver_sql(
                f"GRANT CREATE, USAGE ON SCHEMA public TO {role_name('owner')}"
            )
    upgrade(database_url("owner"))


def upgrade(url: URL, revision: str = "head") -> None:
    """Run the migrations as the owner."""
    with _connected(url) as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":
                raise
            raise MembankError(
                "a migration waited 5 seconds for a table that others use, and gave up unchanged:"
                " run membank migrate again, at a quieter time"
            ) from error


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_ROOT / "migrations"))
    return config


def checks() -> list[Check]:
    """Versions, migration head, roles and row-level security, as the database is now."""
    with transaction(Asker("app")) as connection:
        return [
            _versions(connection),
            _head(connection),
            *(_role(connection, role) for role in ("app", "worker")),
            _row_security(connection),
        ]


def require_safe() -> None:
    """Refuse to serve from a database whose isolation or schema is not as it must be."""
    bad = [check for check in checks() if not check.good]
    if bad:
        told = "; ".join(f"{check.name}: {check.detail}" for check in bad)
        raise MembankError(f"the database is not fit to serve: {told} (see membank doctor)")


def _connected(url: URL, isolation: str | None = None) -> "_Opened":
    options = {"isolation_level": isolation} if isolation else {}
    engine = create_engine(
        url, poolclass=pool.NullPool, connect_args={"connect_timeout": 5}, **options
    )
    return _Opened(engine)


class _Opened:
    """A connection outside of any tenant, for provisioning and migrations only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> Connection:
        try:
            self._connection = self._engine.connect()
        except (OperationalError, InterfaceError) as error:
            url = self._engine.url
            reason = str(error.orig).strip().splitlines()[0]
            raise UnavailableError(
                f"Postgres at {url.host}:{url.port or 5432}/{url.database} does not let"
                f" {url.username} in: {reason}; start it or correct MEMBANK_DATABASE_URL"
            ) from error
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._engine.dispose()


def _ensure_role(connection: Connection, role: Role) -> None:
    name, password = role_name(role), database_url(role).password
    for attempts_left in reversed(range(5)):
        exists = connection.execute(
            text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": name}
        ).scalar()
        # A new role is no superuser and bound by policies; `checks` looks at one that was there.
        statement = sql.SQL("{verb} ROLE {name} LOGIN").format(
            verb=sql.SQL("ALTER" if exists else "CREATE"), name=sql.Identifier(name)
        )
        if password:
            statement += sql.SQL(" PASSWORD {}").format(sql.Literal(str(password)))
        try:
            driver_of(connection).execute(statement)
            return
        except Exception as error:
            if attempts_left and getattr(error, "sqlstate", None) in _RACES:
                continue
            raise MembankError(
                f"role {name} cannot be made: {str(error).strip()}; give an administrator"
                " (CREATEROLE) in MEMBANK_DATABASE_URL, or make the four roles by hand and set"
                " their URLs"
            ) from None


def _ensure_pgvector(connection: Connection) -> None:
    try:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
    except ProgrammingError as error:
        raise MembankError(
            f"pgvector cannot be made in this database: {str(error.orig).strip()}; let a superuser"
            " run CREATE EXTENSION vector in it, then start again"
        ) from None


def _require_versions(connection: Connection) -> None:
    number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    offered = connection.execute(
        text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    ).scalar()
    if number < _LEAST_POSTGRES:
        raise MembankError(f"Postgres {number // 10000} is too old: 16 or newer is needed")
    if offered is None or _numbers(offered) < _LEAST_PGVECTOR:
        raise MembankError(
            f"the server offers pgvector {offered or '(none)'}: 0.8.4 or newer is needed"
        )


def _versions(connection: Connection) -> Check:
    row = connection.execute(
        text(
            "SELECT current_setting('server_version_num')::int,"
            " (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        )
    ).one()
    good = row[0] >= _LEAST_POSTGRES and row[1] is not None and _numbers(row[1]) >= _LEAST_PGVECTOR
    detail = f"Postgres {row[0] // 10000}.{row[0] % 10000}, pgvector {row[1] or 'missing'}"
    return Check("versions", good, detail)


def _head(connection: Connection) -> Check:
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    try:
        with connection.begin_nested():
            current = MigrationContext.configure(connection).get_current_revision()
    except ProgrammingError:
        current = None
    detail = f"{current or 'none'}" + ("" if current == head else f", need {head}: membank up")
    return Check("migration", current == head, detail)


def _role(connection: Connection, role: Role) -> Check:
    name = role_name(role) if role != "app" else str(connection.engine.url.username)
    row = connection.execute(
        text(
            "SELECT r.rolsuper, r.rolbypassrls, EXISTS (SELECT FROM pg_class c"
            " WHERE c.relowner = r.oid AND c.relname IN ('document', 'memory_blob'))"
            " FROM pg_roles r WHERE r.rolname = :name"
        ),
        {"name": name},
    ).one_or_none()
    faults = (
        ["does not exist"]
        if row is None
        else [
            fault
            for bad, fault in zip(row, ("is superuser", "bypasses RLS", "owns tables"), strict=True)
            if bad
        ]
    )
    return Check(f"role {name}", not faults, ", ".join(faults) or "bound by row-level security")


def _row_security(connection: Connection) -> Check:
    open_tables = connection.execute(
        text(
            "SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p') AND relname <> 'alembic_version'"
            " AND NOT (relrowsecurity AND relforcerowsecurity) ORDER BY 1"
        )
    ).scalars()
    names = ", ".join(open_tables)
    return Check("row-level security", not names, f"off on {names}" if names else "forced")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
