"""Who may do what in a bank. A change counts from the next question."""

from sqlalchemy import Connection, text

from app.access.lists import checked_access
from app.bank.find import Bank
from app.bank.roles import BankRole, require
from app.db.session import Asker
from app.errors import NotFoundError


def grant(connection: Connection, asker: Asker, bank: Bank, entry: str, role: BankRole) -> None:
    """Let an access entry (everyone, principal:NAME, group:NAME) have a role, and no other.

    An asker without a principal is an operator. Raises UsageError and NotFoundError for the entry,
    ForbiddenError where the asker's principal is no admin of the bank.
    """
    [entry] = checked_access(connection, bank.tenant, [entry])
    _require_admin(connection, asker, bank)
    put(connection, bank.tenant, bank.id, entry, role)


def put(connection: Connection, tenant: int, bank: int, entry: str, role: BankRole) -> None:
    """Write down the role of an entry, whoever does it."""
    connection.execute(
        text(
            "INSERT INTO bank_member (tenant_id, bank_id, grantee, role)"
            " VALUES (:tenant, :bank, :entry, :role)"
            " ON CONFLICT (tenant_id, grantee, bank_id) DO UPDATE SET role = excluded.role"
        ),
        {"tenant": tenant, "bank": bank, "entry": entry, "role": role.value},
    )


def revoke(connection: Connection, asker: Asker, bank: Bank, entry: str) -> None:
    """Take an entry's role away. An asker without a principal is an operator.

    Raises NotFoundError where it has none, ForbiddenError where the asker's principal is no admin.
    """
    _require_admin(connection, asker, bank)
    if not connection.execute(
        text(
            "DELETE FROM bank_member WHERE tenant_id = :tenant AND bank_id = :bank"
            " AND grantee = :entry"
        ),
        {"tenant": bank.tenant, "bank": bank.id, "entry": entry},
    ).rowcount:
        raise NotFoundError(
            f"{entry!r} has no role in bank {bank.name!r}: membank bank members {bank.name!r}"
        )


def members(connection: Connection, bank: Bank) -> dict[str, BankRole]:
    """BankRole of each entry that has one."""
    rows = connection.execute(
        text(
            "SELECT grantee, role FROM bank_member"
            " WHERE tenant_id = :tenant AND bank_id = :bank ORDER BY grantee"
        ),
        {"tenant": bank.tenant, "bank": bank.id},
    )
    return {row.grantee: BankRole(row.role) for row in rows}


def _require_admin(connection: Connection, asker: Asker, bank: Bank) -> None:
    if asker.principal is not None:
        require(connection, bank.id, BankRole.ADMIN)
