"""Who shows a key or a token, and what that lets them do."""

from dataclasses import dataclass

from app.access import keys, tokens
from app.access.principals import find_principal
from app.access.tenants import of_tenant
from app.db.session import Asker, transaction
from app.errors import ForbiddenError, NotFoundError, UnauthorizedError

_LONGEST = 8192


@dataclass(frozen=True)
class Identity:
    """A principal by name, and the scopes of what it showed: read, write, admin."""

    tenant: str
    principal: str
    scopes: frozenset[str]
    asker: Asker

    def may(self, scope: str) -> Asker:
        """As whom to do what needs `scope`. Raises ForbiddenError where it is missing."""
        if scope not in self.scopes:
            raise ForbiddenError(
                f"this needs the scope {scope}, and what you showed has"
                f" {', '.join(sorted(self.scopes)) or 'none'}: ask for a key that has it"
            )
        return self.asker


def identify(bearer: str) -> Identity:
    """Whom an API key or a JWT stands for, both without the word Bearer.

    Raises UnauthorizedError where it is missing, wrong, expired or revoked; ForbiddenError where a
    good JWT names nobody here; UnavailableError where the database or the issuer's keys cannot be
    reached. No message repeats any of `bearer` but a key's public id.
    """
    if not bearer or len(bearer) > _LONGEST:
        raise UnauthorizedError("give an API key or a token: Authorization: Bearer ...")
    if bearer.startswith("mb_"):
        with transaction(Asker("app")) as connection:
            holder = keys.find(connection, bearer)
        return Identity(holder.tenant, holder.principal, holder.scopes, holder.asker)
    return _of_claims(tokens.verify(bearer))  # which may ask the issuer


def _of_claims(claims: tokens.Claims) -> Identity:
    try:
        with of_tenant("app", claims.tenant) as (connection, owner):
            asker = find_principal(connection, owner.tenant or 0, claims.principal)
    except NotFoundError:
        raise ForbiddenError(
            "the token is good, but its tenant or its principal is not known here:"
            " membank principal add NAME --tenant T"
        ) from None
    return Identity(claims.tenant, claims.principal, claims.scopes, asker)
