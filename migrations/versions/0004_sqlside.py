"""Loading by COPY, TRUNCATE, and a hash that no way of changing a text passes by.

Revision ID: 0004
"""

from migrations.scripts import run

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0004_sqlside")


def downgrade() -> None:
    run("0004_down")
