"""Rights of keys that an index brings, and an index to the keys of a document.

Revision ID: 0009
"""

from migrations.scripts import run

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0009_search")


def downgrade() -> None:
    run("0009_down")
