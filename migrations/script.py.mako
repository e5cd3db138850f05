"""${message}

Revision ID: ${up_revision}
"""

from alembic import op

# NNNN_N runs before the new version is deployed, and the old one goes on with it: what it adds is
# left out by who does not know it. NNNN runs after, when the old version is gone: it takes away.
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    op.execute("")
    # What may take longer than migrations/env.py allows must not hold up who writes either:
    # with op.get_context().autocommit_block():
    #     op.execute("SET lock_timeout = 0; SET statement_timeout = 0")
    #     op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS ...")


def downgrade() -> None:
    op.execute("")
