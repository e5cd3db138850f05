"""Alembic's entry: one connection as membank_owner, one transaction per revision, time limits.

`alembic upgrade head` takes the owner's URL from the settings; `app.db.schema.upgrade` and the
tests hand over a connection.
"""

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

from app.db.addresses import database_url

# DDL that waits holds up every later reader of its table, and DDL that works holds up all of them:
# both end soon. A revision that may take longer says so itself, for itself (script.py.mako).
_LIMITS = text("SET lock_timeout = '5s'; SET statement_timeout = '60s'")


def run(connection: Connection) -> None:
    # Two upgrades at a time would both find the old revision, so they take turns.
    connection.execute(text("SELECT pg_advisory_lock(727266)"))
    connection.execute(_LIMITS)
    connection.commit()
    context.configure(
        connection=connection,
        transaction_per_migration=True,
        on_version_apply=lambda **_: connection.execute(_LIMITS),
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
    connection.execute(text("SELECT pg_advisory_unlock(727266)"))
    connection.commit()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = create_engine(database_url("owner"), poolclass=pool.NullPool)
    with engine.connect() as connection:
        run(connection)
    engine.dispose()
