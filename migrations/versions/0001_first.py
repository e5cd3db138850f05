"""The schema as it began.

Revision ID: 0001
"""

from pathlib import Path

from alembic import op

from app.db import context_keys
from app.db.signing import ensure_context_key
from migrations.scripts import SCHEMA, create, drop

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# migrations/schema says what the schema is today. From the second revision on that is no longer
# what this one made, so whoever adds it leaves a copy of the folder here (CONTRIBUTING.md).
AS_IT_WAS = Path(__file__).with_name("0001")


def upgrade() -> None:
    create(op.get_bind(), AS_IT_WAS if AS_IT_WAS.is_dir() else SCHEMA)
    # So that whoever migrates can ask at once.
    context_keys.add(op.get_bind(), ensure_context_key())


def downgrade() -> None:
    drop(op.get_bind())
