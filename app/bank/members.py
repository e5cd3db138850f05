"""Who may do what in a bank. A change counts from the next question."""

from sqlalchemy import text

from app.access.lists import checked_access
from app.bank.find import Bank
from app.bank.roles import Role, require
from app.db.session import Asker, transaction
from app.errors import NotFoundError


def grant(bank: Bank, entry: str, role: Role, by: Asker | None = None) -> None:
    """Let an access entry (everyone, principal:NAME, group:NAME) have a role, and no other.

    `by` is the principal who does it, None an operator. Raises UsageError and NotFoundError for the
    entry, ForbiddenError where `by` is no admin of the bank.
    """
    [entry] = checked_access(bank.tenant, [entry])
    _change(
        bank,
        by,
        "INSERT INTO bank_member (tenant_id, bank_id, grantee, role)"
        " VALUES (:tenant, :bank, :entry, :role)"
        " ON CONFLICT (tenant_id, grantee, bank_id) DO UPDATE SET role = excluded.role",
        entry=entry,
        role=role.value,
    )


def revoke(bank: Bank, entry: str, by: Asker | None = None) -> None:
    """Take an entry's role away. Raises NotFoundError where it has none, ForbiddenError."""
    if not _change(
        bank,
        by,
        "DELETE FROM bank_member WHERE tenant_id = :tenant AND bank_id = :bank"
        " AND grantee = :entry",
        entry=entry,
    ):
        raise NotFoundError(
            f"{entry!r} has no role in bank {bank.name!r}: membank bank members {bank.name!r}"
        )


def members(bank: Bank) -> dict[str, Role]:
    """Role of each entry that has one."""
    with transaction(Asker("app", bank.tenant)) as connection:
        rows = connection.execute(
            text(
                "SELECT grantee, role FROM bank_member"
                " WHERE tenant_id = :tenant AND bank_id = :bank ORDER BY grantee"
            ),
            {"tenant": bank.tenant, "bank": bank.id},
        )
        return {row.grantee: Role(row.role) for row in rows}


def _change(bank: Bank, by: Asker | None, statement: str, **values: object) -> int:
    principal = by.principal if by else None
    with transaction(Asker("worker", bank.tenant, principal)) as connection:
        if by is not None:
            require(connection, bank.id, Role.ADMIN)
        return connection.execute(
            text(statement), {"tenant": bank.tenant, "bank": bank.id, **values}
        ).rowcount
