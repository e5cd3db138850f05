"""A context that SQL cannot forge, and a psql role for each tenant.

Revision ID: 0007
"""

from migrations.scripts import run

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0007_context")


def downgrade() -> None:
    run("0007_down")
