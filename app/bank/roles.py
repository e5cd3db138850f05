"""What a principal may do in a bank: the one place that decides it for those who write.

Reading is decided by the policies of the database.
"""

from enum import StrEnum

from sqlalchemy import Connection, text

from app.errors import ForbiddenError


class BankRole(StrEnum):
    """In rising order: each includes those before it."""

    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"


_RANK = {role: rank for rank, role in enumerate(BankRole)}
_ROLES = text(
    "SELECT b.name, m.role FROM bank b LEFT JOIN bank_member m ON m.tenant_id = b.tenant_id"
    " AND m.bank_id = b.id AND m.grantee = ANY ((SELECT current_readers())::text[])"
    " WHERE b.tenant_id = (SELECT current_tenant()) AND b.id = :bank"
)
_READERS = text("SELECT current_readers()")


def require(connection: Connection, bank: int, least: BankRole) -> BankRole:
    """The role in a bank of the principal whom the transaction is for.

    Raises ForbiddenError where it is less than `least`.
    """
    rows = connection.execute(_ROLES, {"bank": bank}).all()
    best = max(
        (BankRole(row.role) for row in rows if row.role), key=_RANK.__getitem__, default=None
    )
    if best is None or _RANK[best] < _RANK[least]:
        name = rows[0].name if rows else bank
        raise ForbiddenError(
            f"this needs the role {least} in bank {name!r}, and you have {best or 'none'}:"
            f" membank bank grant {name!r} --tenant T --to principal:YOU --role {least}"
        )
    return best


def on_list(connection: Connection, access: list[str]) -> bool:
    """Whether a document's list names the principal whom the transaction is for."""
    return not set(access).isdisjoint(connection.execute(_READERS).scalar() or ())
