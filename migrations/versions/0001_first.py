"""Tenants, banks, documents, memories, outbox; their triggers, policies and views.

Revision ID: 0001
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    for part in ("tables", "triggers", "access", "views"):
        _run(part)


def downgrade() -> None:
    _run("down")


def _run(part: str) -> None:
    statements = (SQL / f"0001_{part}.sql").read_text()
    # Without parameters, so that a % in the text is no placeholder.
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(statements)
