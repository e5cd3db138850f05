"""What a chunk has in sight while it is encoded.

Revision ID: 0002
"""

from migrations.scripts import run

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0002_context")


def downgrade() -> None:
    run("0002_down")
