"""Keys of tenants, the audit log, quotas.

Revision ID: 0008
"""

from migrations.scripts import run

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0008_vault")
    run("0008_audit")
    run("0008_quotas")
    run("0008_logins")


def downgrade() -> None:
    run("0008_down")
