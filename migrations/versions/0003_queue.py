"""Tracebacks, priorities, pausing, jobs, and a status that says more.

Revision ID: 0003
"""

from migrations.scripts import run

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0003_queue")


def downgrade() -> None:
    run("0003_down")
