"""Alembic's entry: one connection as membank_owner, one transaction per migration, time limits.

`alembic upgrade head` takes the owner's URL from the settings; `app.bank.schema.upgrade` and the
tests hand over a connection.
"""

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

from app.bank.tables import metadata
from app.db.addresses import database_url
from app.search.indexes import PREFIX

# Waiting DDL blocks every later reader of its table, so it gives up soon; two upgrades at a time
# would both find the old revision, so they take turns.
_LIMITS = "SELECT pg_advisory_lock(727266); SET lock_timeout = '5s'"


def run(connection: Connection) -> None:
    connection.execute(text(_LIMITS))
    connection.commit()
    context.configure(
        connection=connection,
        transaction_per_migration=True,
        target_metadata=metadata,
        include_name=lambda name, kind, _: not (name or "").startswith(PREFIX),
        autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
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
