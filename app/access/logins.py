"""A tenant's own login for psql: bound to it by who logs in, not by a setting."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.access.tenants import tenant_id
from app.db.addresses import TENANT_GROUP, provisioning_url, role_name
from app.db.session import driver_of, outside
from app.errors import ConflictError, MembankError, NotFoundError, UsageError


@dataclass(frozen=True)
class Login:
    """A tenant's role. Nobody keeps the password: it is known here and nowhere else."""

    role: str
    password: str = field(repr=False)
    url: str = field(repr=False)


def add_login(tenant: str) -> Login:
    """Make the tenant's login. Raises ConflictError when it has one."""
    # Roles can be listed by everyone on the server, and belong to all its databases. So the name
    # tells nothing of the tenant, and no other database has one of that name.
    role, password = f"{TENANT_GROUP}_{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    with _administrator() as connection:
        driver, owner = driver_of(connection), tenant_id(connection, tenant)
        try:
            connection.execute(
                text("INSERT INTO tenant_role (tenant_id, role) VALUES (:tenant, :role)"),
                {"tenant": owner, "role": role},
            )
        except IntegrityError:
            raise ConflictError(
                f"tenant {tenant!r} has a role: membank tenant role {tenant!r} --drop removes it,"
                " psql's \\password changes its password"
            ) from None
        # Sent as a SCRAM verifier, so that no log of the server has the password.
        verifier = driver.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        ).decode()
        driver.execute(
            sql.SQL(
                "CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE"
                " NOREPLICATION CONNECTION LIMIT 10 PASSWORD {password} IN ROLE {group}"
            ).format(
                role=sql.Identifier(role),
                password=sql.Literal(verifier),
                group=sql.Identifier(TENANT_GROUP),
            )
        )
    url = provisioning_url().set(drivername="postgresql", username=role, password=password)
    return Login(role, password, url.render_as_string(hide_password=False))


def drop_login(tenant: str) -> str:
    """Remove the tenant's login, sessions and all; its name. Raises NotFoundError."""
    with _administrator() as connection:
        owner = tenant_id(connection, tenant)
        role = connection.execute(
            text("DELETE FROM tenant_role WHERE tenant_id = :tenant RETURNING role"),
            {"tenant": owner},
        ).scalar()
        if role is None:
            raise NotFoundError(
                f"tenant {tenant!r} has no role: membank tenant role {tenant!r} makes one"
            )
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :role"),
            {"role": role},
        )
        driver_of(connection).execute(
            sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role))
        )
    return str(role)


@contextmanager
def _administrator() -> Iterator[Connection]:
    """A transaction of whoever may make roles."""
    url = provisioning_url()
    if url.username == role_name("app"):
        raise UsageError(
            f"MEMBANK_DATABASE_URL logs in as {url.username}, which cannot make roles:"
            " give an administrator there for this command"
        )
    with outside(url) as connection:
        try:
            with connection.begin():
                yield connection
        except (DBAPIError, psycopg.Error) as error:
            reason = str(getattr(error, "orig", error)).strip()
            raise MembankError(
                f"nothing was changed: {reason}; give a superuser in MEMBANK_DATABASE_URL"
            ) from None
