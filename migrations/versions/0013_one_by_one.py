"""Rights of chunks and blobs that are looked up row by row.

Revision ID: 0013
"""

from migrations.scripts import run

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0013_one_by_one")


def downgrade() -> None:
    run("0013_down")
