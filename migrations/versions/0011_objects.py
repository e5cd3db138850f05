"""Memories whose bytes are in an object store.

Revision ID: 0011
"""

from migrations.scripts import run

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0011_objects")


def downgrade() -> None:
    run("0011_down")
