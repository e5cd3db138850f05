"""Requests that are done once, however often they are sent.

Revision ID: 0012
"""

from migrations.scripts import run

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0012_idempotency")


def downgrade() -> None:
    run("0012_down")
