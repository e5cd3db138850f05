"""Uploaded files are stored by workers, from the queue.

Revision ID: 0015
"""

from migrations.scripts import run

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0015_uploads")


def downgrade() -> None:
    run("0015_down")
