"""Keys of principals, and roles in banks.

Revision ID: 0006
"""

from migrations.scripts import run

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0006_keys")


def downgrade() -> None:
    run("0006_down")
