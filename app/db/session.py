"""The only way to the database: a transaction that says who is asking."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, pool, text
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    TimeoutError,
)

from app.db.addresses import DatabaseRole, database_url
from app.db.signing import context_key
from app.errors import BusyError, MembankError, QuotaError, UnavailableError
from app.process import tracing

_CONTEXT = text(
    "SELECT set_config('membank.context', :context, true),"
    " set_config('plan_cache_mode', :plans, true),"
    # Rights of keys are looked up key by key, except where a search says otherwise.
    " set_config('membank.each_alone', 'on', true), current_tenant()"
)
# A generic plan made for one tenant is wrong for another of a different size. But whoever writes
# would have the check of every foreign key of every row planned anew, a third of the time of
# storing a document.
_PLANS = {"app": "force_custom_plan", "worker": "auto", "admin": "force_custom_plan"}
_NO_SUCH_TABLE, _NO_SUCH_FUNCTION, _NOT_SIGNED = "42P01", "42883", "42501"


@dataclass(frozen=True)
class Asker:
    """Who a transaction is for. Without a tenant it sees no tenant's rows.

    The role admin sees all rows whoever asks. With a principal it is for what that principal may do
    and no other role can: whoever opens it looks at the principal's rights inside.
    """

    role: DatabaseRole
    tenant: int | None = None
    principal: int | None = None

    def in_role(self, role: DatabaseRole) -> "Asker":
        """This tenant and principal, served by another role of the database."""
        return replace(self, role=role)


@contextlib.contextmanager
def transaction(asker: Asker) -> Iterator[Connection]:
    """One transaction for `asker`: committed at the end, rolled back on any error.

    Raises UnavailableError when the database does not answer or goes away, MembankError when it
    was never migrated, or does not know the key that this process signs with; BusyError when no
    connection comes free; QuotaError when the tenant has no room for what is stored.
    """
    with _told(asker.role) as engine, engine.begin() as connection:
        become(connection, asker)
        yield connection


@contextlib.contextmanager
def keeping(
    asker: Asker, names: Collection[str], alone: bool = False
) -> Iterator[tuple[set[str], Callable[[], contextlib.AbstractContextManager[Connection]]]]:
    """Keep names, each of what several processes share, while the block runs and no transaction is
    open: which are kept, and what opens a transaction of `asker`, any number one after another.

    Many keep a name at a time; one that keeps it `alone` keeps out all others, and gets only those
    that nobody has. All is done on one connection: if it breaks, the names are free and no further
    transaction begins. Raises what `transaction` raises.
    """
    take = _ALONE if alone else _BESIDE
    with _told(asker.role) as engine, engine.connect() as connection:

        @contextlib.contextmanager
        def begin() -> Iterator[Connection]:
            with connection.begin():
                become(connection, asker)
                yield connection

        try:
            kept = {
                name
                for name in sorted(set(names))  # in one order, or two could wait for each other
                if connection.execute(take, {"name": name}).scalar() is not False
            }
            connection.commit()
            yield kept, begin
        finally:
            _let_go(connection)


_BESIDE = text("SELECT pg_advisory_lock_shared(hashtextextended(:name, 0))")
_ALONE = text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")


def _let_go(connection: Connection) -> None:
    """Of all names, before another uses the connection."""
    try:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock_all()"))
        connection.commit()
    except DBAPIError:
        connection.invalidate()


@contextlib.contextmanager
def _told(role: DatabaseRole) -> Iterator[Engine]:
    """The role's connections; errors of the database are told as `transaction` says."""
    engine = _engine(role, str(database_url(role).render_as_string(False)))
    try:
        yield engine
    except TimeoutError as error:
        raise BusyError(
            f"all connections to {_place(engine)} are in use: try again soon"
        ) from error
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _NO_SUCH_TABLE:
            raise
        raise _without_tables(engine) from error
    except (OperationalError, InterfaceError) as error:
        if not (error.connection_invalidated or _is_unreachable(error)):
            raise
        raise UnavailableError(
            f"Postgres at {_place(engine)} does not answer: {_first_line(error)};"
            " start it (membank up) or correct MEMBANK_DATABASE_URL"
        ) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "MBQ01":
            raise
        raise QuotaError(_first_line(error)) from None


def become(connection: Connection, asker: Asker) -> None:
    """Be `asker` from here to the transaction's end, which is of the asker's role.

    Raises MembankError when the database does not know this process's key, or is older.
    """
    context = ""
    bound = asker.role in ("app", "worker") or asker.principal is not None
    if asker.tenant is not None and bound:
        process = driver_of(connection).info.backend_pid
        context = context_key().sign(asker.tenant, asker.principal, process)
    try:
        values = {"context": context, "plans": _PLANS.get(asker.role, "auto")}
        heard = connection.execute(_CONTEXT, values).one().current_tenant
    except ProgrammingError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == _NO_SUCH_FUNCTION:
            raise _without_tables(connection.engine) from error
        if state != _NOT_SIGNED:
            raise
        raise MembankError(
            f"the database at {_place(connection.engine)} does not know the key that this process"
            " signs with, or there is a pooler of transactions between them: give it the"
            " MEMBANK_CONTEXT_KEY or the context.key of the others, or let an administrator run"
            " membank context rotate with this one"
        ) from None
    if context and heard != asker.tenant:
        raise MembankError(
            f"the database at {_place(connection.engine)} is of an older version: membank up"
            " or membank migrate brings it to this one"
        )


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    """The driver's connection in the same transaction, for what SQLAlchemy has no words for."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError(f"{type(driver).__name__} is not psycopg's connection")
    return driver


@contextlib.contextmanager
def outside(url: URL, isolation: str | None = None) -> Iterator[Connection]:
    """A connection outside of any tenant, for whoever provisions, migrates or makes roles.

    Raises UnavailableError when the database does not let it in.
    """
    options = {"isolation_level": isolation} if isolation else {}
    engine = create_engine(
        url,
        poolclass=pool.NullPool,
        hide_parameters=True,
        connect_args={"connect_timeout": 5},
        **options,
    )
    try:
        connection = engine.connect()
    except (OperationalError, InterfaceError) as error:
        raise UnavailableError(
            f"Postgres at {_place(engine)} does not let {url.username} in: {_first_line(error)};"
            " start it or correct MEMBANK_DATABASE_URL"
        ) from error
    try:
        yield connection
    finally:
        connection.close()
        engine.dispose()


def dispose() -> None:
    """Close every pooled connection of this process."""
    for engine in _engines:
        engine.dispose()


_engines: list[Engine] = []


@lru_cache(maxsize=16)
def _engine(role: DatabaseRole, url: str) -> Engine:
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=4,
        hide_parameters=True,  # they hold texts of documents, and errors are kept
        connect_args={
            "connect_timeout": 5,
            "prepare_threshold": None,
            "application_name": f"membank-{role}",
        },
    )
    _engines.append(engine)
    tracing.watch(engine)
    return engine


def _is_unreachable(error: OperationalError | InterfaceError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    # 57P0x: shutting down or starting up; 08: connection errors; none: never connected.
    return state is None or state.startswith(("57P", "08", "28", "3D"))


def _without_tables(engine: Engine) -> MembankError:
    return MembankError(
        f"the database at {_place(engine)} lacks this version's tables: membank up makes them"
    )


def _place(engine: Engine) -> str:
    return f"{engine.url.host or 'local socket'}:{engine.url.port or 5432}/{engine.url.database}"


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
