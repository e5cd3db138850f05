"""Rights read from an index alone, and only those of the bank that is searched.

Revision ID: 0014
"""

from migrations.scripts import run

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0014_rights")


def downgrade() -> None:
    run("0014_down")
