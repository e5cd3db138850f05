"""The only way to the database: a transaction that says who is asking."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from app.addresses import Role, database_url
from app.errors import MembankError, QuotaError, UnavailableError

_CONTEXT = text(
    "SELECT set_config('membank.tenant_id', :tenant, true),"
    " set_config('membank.principal_id', :principal, true),"
    # A generic plan made for one tenant is wrong for another of a different size.
    " set_config('plan_cache_mode', 'force_custom_plan', true)"
)


@dataclass(frozen=True)
class Asker:
    """Who a transaction is for. Without a tenant it sees no tenant's rows."""

    role: Role
    tenant: int | None = None
    principal: int | None = None


@contextlib.contextmanager
def transaction(asker: Asker) -> Iterator[Connection]:
    """One transaction for `asker`: committed at the end, rolled back on any error.

    Raises UnavailableError when the database does not answer or goes away, MembankError when it
    was never migrated, QuotaError when the tenant has no room for what is stored.
    """
    engine = _engine(asker.role, str(database_url(asker.role).render_as_string(False)))
    try:
        with engine.begin() as connection:
            connection.execute(
                _CONTEXT,
                {"tenant": str(asker.tenant or ""), "principal": str(asker.principal or "")},
            )
            yield connection
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42P01":
            raise
        raise MembankError(
            f"the database at {_place(engine)} lacks this version's tables: membank up makes them"
        ) from error
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


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    """The driver's connection in the same transaction, for what SQLAlchemy has no words for."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError(f"{type(driver).__name__} is not psycopg's connection")
    return driver


def dispose() -> None:
    """Close every pooled connection of this process."""
    for engine in _engines:
        engine.dispose()


_engines: list[Engine] = []


@lru_cache(maxsize=16)
def _engine(role: Role, url: str) -> Engine:
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
    return engine


def _is_unreachable(error: OperationalError | InterfaceError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    # 57P0x: shutting down or starting up; 08: connection errors; none: never connected.
    return state is None or state.startswith(("57P", "08", "28", "3D"))


def _place(engine: Engine) -> str:
    return f"{engine.url.host or 'local socket'}:{engine.url.port or 5432}/{engine.url.database}"


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
