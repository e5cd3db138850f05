"""A bank is encoded anew under another profile while the present one serves.

Revision ID: 0005
"""

from migrations.scripts import run

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0005_profile_change")


def downgrade() -> None:
    run("0005_down")
