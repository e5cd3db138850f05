"""Tenants in turn."""

from sqlalchemy import text

from app.db.session import Asker, transaction


def next_tenant(after: int) -> int | None:
    """The id of the next tenant, to go through all of them; None after the last."""
    with transaction(Asker("worker")) as connection:
        return connection.execute(text("SELECT next_tenant(:after)"), {"after": after}).scalar()
