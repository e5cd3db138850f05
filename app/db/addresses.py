"""Where the servers are: the ones that the settings name, else the embedded ones of this home."""

import hashlib
import hmac
from typing import Literal, get_args

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.db.endpoint import Endpoint, postgres_url, valkey_url
from app.errors import MembankError, UsageError
from app.settings import settings

DatabaseRole = Literal["owner", "app", "worker", "admin"]
ROLES: tuple[DatabaseRole, ...] = get_args(DatabaseRole)
TENANT_GROUP = "membank_tenant"
"""What the psql roles of tenants are members of. Nobody logs in as it."""


def database_url(role: DatabaseRole) -> URL:
    """Address of the database, logged in as membank_ROLE.

    Raises UnavailableError when no server is named and the local stack was never started.
    """
    given = getattr(settings(), f"{role}_database_url", None)
    if given:
        return _parsed(given, f"MEMBANK_{role.upper()}_DATABASE_URL")
    url = provisioning_url()
    if url.username == role_name("app"):
        if role == "app":
            return url
        raise UsageError(
            f"MEMBANK_DATABASE_URL logs in as {url.username}, which may only read: set"
            f" MEMBANK_{role.upper()}_DATABASE_URL too (role {role_name(role)})"
        )
    return url.set(username=role_name(role), password=_password(url, role))


def administers() -> bool:
    """Whether the HTTP service offers administration: as MEMBANK_API_ADMIN says, and without it
    where the address of membank_admin is known.

    Raises UsageError where it is wanted and the address is not known, and for one that is none.
    """
    wanted = settings().api_admin
    if wanted is False:
        return False
    try:
        database_url("admin")
    except MembankError:
        if settings().admin_database_url:
            raise
        if wanted:
            raise UsageError(
                "MEMBANK_API_ADMIN=true needs MEMBANK_ADMIN_DATABASE_URL, the address of the role"
                " membank_admin: set it, or MEMBANK_API_ADMIN=false"
            ) from None
        return False
    return True


def provisioning_url() -> URL:
    """The database as MEMBANK_DATABASE_URL or the embedded server gives it."""
    given = settings().database_url
    if given:
        return _parsed(given, "MEMBANK_DATABASE_URL")
    endpoint = Endpoint.of(settings().home, "postgres")
    return _parsed(postgres_url(endpoint), "the embedded Postgres")


def redis_url() -> str:
    """Address of Valkey or Redis."""
    return settings().redis_url or valkey_url(Endpoint.of(settings().home, "valkey"))


def role_name(role: DatabaseRole) -> str:
    return f"membank_{role}"


def _password(url: URL, role: DatabaseRole) -> str | None:
    """A role's password follows from the administrator's, so that none has to be kept."""
    if url.password is None:
        return None
    return hmac.new(url.password.encode(), role_name(role).encode(), hashlib.sha256).hexdigest()


def _parsed(text: str, name: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        raise UsageError(f"{name} is not a database URL: postgresql://USER@HOST/DATABASE") from None
    if url.get_backend_name() != "postgresql":
        raise UsageError(f"{name} is for {url.get_backend_name()}: only Postgres is supported")
    return url.set(drivername="postgresql+psycopg")
