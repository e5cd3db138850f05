"""Make and check the database: roles, extension, migrations, row-level security."""

import sys
import threading
from typing import Any

from alembic import command
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.db import context_keys, revisions
from app.db.addresses import (
    ROLES,
    TENANT_GROUP,
    DatabaseRole,
    database_url,
    provisioning_url,
    role_name,
)
from app.db.isolation import (
    Check,
    check_role,
    pgvector_fault,
    postgres_fault,
    row_security,
    tenant_roles,
    versions,
    views_and_functions,
)
from app.db.session import Asker, driver_of, outside, transaction
from app.db.signing import context_key
from app.errors import MembankError, UnavailableError
from app.settings import settings

SERVING: tuple[DatabaseRole, ...] = ("app", "worker")
# Roles belong to the server, advisory locks to a database: whoever provisions another database
# may alter or create the same role. "tuple concurrently updated", unique and duplicate names.
_RACES = ("XX000", "23505", "42710")
# What migrations/env.py allows, by the state that Postgres ends a statement with.
_LIMITS = {
    "55P03": "waited 5 seconds for a table that others use",
    "57014": "worked on one statement for a minute",
}


def provision(before_deployment: bool = False) -> None:
    """Create the extension and the roles where they are missing, migrate, make known the key that
    this process signs with.

    `before_deployment` leaves out the revisions that the version which serves now does not survive.

    Needs an administrator in MEMBANK_DATABASE_URL (or the embedded server). With the app's own
    URL there, everything must exist already and only the migrations run.
    Raises UnavailableError or MembankError that says what is missing.
    """
    prepare()
    upgrade(database_url("owner"), before_deployment)
    context_keys.install()


def prepare() -> None:
    """Make what an administrator makes before there is a schema: the roles and the extension."""
    url = provisioning_url()
    if url.username == role_name("app"):
        return
    with outside(url, "AUTOCOMMIT") as connection:
        _require_versions(connection)
        # Two stacks may be provisioned on one server at the same time.
        connection.execute(text("SELECT pg_advisory_lock(727267)"))
        for role in ROLES:
            _ensure_role(connection, role_name(role), _login(role))
        _ensure_role(connection, TENANT_GROUP, sql.SQL("NOLOGIN"))
        _forbid_temporary_tables(connection)
        _ensure_pgvector(connection)
        connection.exec_driver_sql(f"GRANT CREATE, USAGE ON SCHEMA public TO {role_name('owner')}")


def upgrade(url: URL, before_deployment: bool = False) -> None:
    """Run the revisions that are missing, as the owner; or, `before_deployment`, those of them that
    the version which serves now goes on with.

    Raises MembankError where the database is of a version that this one does not work with, or a
    revision met a limit of time; then that one was rolled back.
    """
    with outside(url) as connection:
        _require_group(connection)
        current = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()
        if current not in (None, *revisions.known()):
            if revisions.fits(current):
                return
            raise MembankError(
                f"the database is of a newer version ({current}): install that version here"
            )
        wanted = revisions.before_deployment if before_deployment else revisions.missing
        to_do = wanted(current)
        if not to_do:
            return
        config = revisions.alembic_config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, to_do[-1])
        except OperationalError as error:
            told = _LIMITS.get(getattr(error.orig, "sqlstate", ""))
            if told is None:
                raise
            raise MembankError(
                f"a migration {told}, and gave up unchanged: run membank migrate again, at a"
                " quieter time"
            ) from error


def checks(role: DatabaseRole = "app") -> list[Check]:
    """Versions, migration head, roles, row-level security and the context's key, as the database
    is now; looked at as `role`."""
    with transaction(Asker(role)) as connection:
        found = [
            versions(connection),
            _head(connection),
            *(check_role(connection, name) for name in _bound(connection, role)),
            tenant_roles(connection),
            row_security(connection),
            views_and_functions(connection),
        ]
    return [*found, _key(role)]


def require_safe(role: DatabaseRole = "app") -> None:
    """Refuse to serve from a database whose isolation or schema is not as it must be."""
    bad = [check for check in checks(role) if not check.good]
    if bad:
        told = "; ".join(f"{check.name}: {check.detail}" for check in bad)
        raise MembankError(f"the database is not fit to serve: {told} (see membank doctor)")


def _bound(connection: Connection, role: DatabaseRole) -> list[str]:
    """The roles that serve, under the names that they have here."""
    here = {role: str(connection.engine.url.username)}
    return [here.get(each, role_name(each)) for each in SERVING]


def _key(role: DatabaseRole) -> Check:
    try:
        with transaction(Asker(role, 0)):
            return Check("context key", True, f"{context_key().id} is known to the database")
    except MembankError as error:
        return Check("context key", False, str(error))


def _require_group(connection: Connection) -> None:
    found = connection.execute(
        text("SELECT FROM pg_roles WHERE rolname = :name"), {"name": TENANT_GROUP}
    ).one_or_none()
    connection.rollback()
    if found is None:
        raise MembankError(
            f"the role {TENANT_GROUP} is missing: let an administrator run"
            f" CREATE ROLE {TENANT_GROUP} NOLOGIN, then migrate again"
        )


def _ensure_role(connection: Connection, name: str, options: sql.Composable) -> None:
    for attempts_left in reversed(range(5)):
        exists = connection.execute(
            text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": name}
        ).scalar()
        # A new role is no superuser and bound by policies; `checks` looks at one that was there.
        statement = sql.SQL("{verb} ROLE {name} {options}").format(
            verb=sql.SQL("ALTER" if exists else "CREATE"),
            name=sql.Identifier(name),
            options=options,
        )
        try:
            driver_of(connection).execute(statement)
            return
        except Exception as error:
            if attempts_left and getattr(error, "sqlstate", None) in _RACES:
                continue
            raise MembankError(
                f"role {name} cannot be made: {str(error).strip()}; give an administrator"
                " (CREATEROLE) in MEMBANK_DATABASE_URL, or make the roles by hand and set"
                " their URLs"
            ) from None


def _login(role: DatabaseRole) -> sql.Composable:
    password = database_url(role).password
    if not password:
        return sql.SQL("LOGIN")
    return sql.SQL("LOGIN PASSWORD {}").format(sql.Literal(str(password)))


def _forbid_temporary_tables(connection: Connection) -> None:
    """A temporary table hides the real one from whoever uses the connection next."""
    database = connection.engine.url.database
    driver_of(connection).execute(
        sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(str(database)))
    )


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
    for fault in (postgres_fault(number), pgvector_fault(offered)):
        if fault:
            raise MembankError(f"the server cannot be used: {fault}")


def _head(connection: Connection) -> Check:
    try:
        with connection.begin_nested():
            current = MigrationContext.configure(connection).get_current_revision()
    except ProgrammingError:
        current = None
    detail = current or "none"
    left = revisions.missing(current)
    if not revisions.fits(current):
        detail += f", need {revisions.known()[-1]}: membank up or membank migrate"
    elif left:
        detail += f"; when no older version serves any more, {left[-1]}: membank migrate"
    return Check("migration", revisions.fits(current), detail)


def await_safe(log: Any, stop: threading.Event, role: DatabaseRole) -> None:
    """Wait for the database, and end the process with 1 when it is not fit to be served from."""
    told = False
    while not stop.is_set():
        try:
            require_safe(role)
            return
        except UnavailableError as error:
            if not told:
                log.warning("waits for the database", reason=str(error))
            told = True
        except MembankError as error:
            log.error("does not start", reason=str(error))
            sys.exit(1)
        stop.wait(settings().poll_seconds)
