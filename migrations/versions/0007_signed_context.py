"""A context that SQL cannot forge, and a psql role for each tenant.

Revision ID: 0007
"""

from alembic import op

from app.db import context_keys
from app.db.signing import ensure_context_key
from migrations.scripts import run

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0007_context")
    # So that whoever migrates can ask at once.
    context_keys.add(op.get_bind(), ensure_context_key())


def downgrade() -> None:
    run("0007_down")
