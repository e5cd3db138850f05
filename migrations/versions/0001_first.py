"""Tenants, banks, documents, memories, outbox; their triggers, policies and views.

Revision ID: 0001
"""

from migrations.scripts import run

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for part in ("tables", "triggers", "access", "views"):
        run(f"0001_{part}")


def downgrade() -> None:
    run("0001_down")
