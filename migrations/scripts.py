"""The schema as SQL: made whole, and taken away whole."""

from pathlib import Path

from sqlalchemy import Connection

_HERE = Path(__file__).parent
SCHEMA = _HERE / "schema"
# A function is checked when it is made, so the tables that it names come first; a trigger can stand
# on a view; rights are given to all that there is.
PARTS = ("tables", "functions", "views", "triggers", "policies", "roles")


def create(connection: Connection, folder: Path = SCHEMA) -> None:
    """Make all that there is in a database that has nothing but Alembic's table, as its owner."""
    for part in PARTS:
        _run(connection, (folder / f"{part}.sql").read_text())


def drop(connection: Connection) -> None:
    """Take away every view, table and function that the owner has in the schema `public`.

    Fails, and drops nothing, where someone else's object needs one of them.
    """
    _run(connection, (_HERE / "drop.sql").read_text())


def _run(connection: Connection, script: str) -> None:
    # Without parameters, so that a % in the text is no placeholder.
    connection.execution_options(no_parameters=True).exec_driver_sql(script)
