"""The hand-written SQL of the migrations."""

from pathlib import Path

from alembic import op

SQL = Path(__file__).parent / "sql"


def run(name: str) -> None:
    """Execute a file of `sql/` as one script."""
    statements = (SQL / f"{name}.sql").read_text()
    # Without parameters, so that a % in the text is no placeholder.
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(statements)
