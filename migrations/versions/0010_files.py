"""Files as they were uploaded, and what they gave to which bank.

Revision ID: 0010
"""

from migrations.scripts import run

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0010_files")


def downgrade() -> None:
    run("0010_down")
