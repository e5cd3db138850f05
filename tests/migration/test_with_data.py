"""From the first revision up and down again, with rows in every table of it."""

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine, pool

from app.access.principals import find_principal
from app.bank.find import find_bank
from app.db import schema
from app.db.addresses import database_url
from app.errors import MembankError
from app.queue import status
from app.search.search import search
from app.store.blobs import load_blobs

FIRST = "0001"
NORTH = [1.0, 0.0, 0.0]
FILL = """
INSERT INTO tenant (name) VALUES ('harbor'), ('meadow');
INSERT INTO principal (tenant_id, name) SELECT id, 'alice' FROM tenant;
INSERT INTO principal_group (tenant_id, name) SELECT id, 'hr' FROM tenant;
INSERT INTO group_member (tenant_id, group_id, principal_id)
    SELECT g.tenant_id, g.id, p.id FROM principal_group g JOIN principal p USING (tenant_id);
INSERT INTO encoder_profile (tenant_id, id, spec) SELECT id, 'p', '{"model": "m"}' FROM tenant;
INSERT INTO bank (tenant_id, name, profile_id) SELECT id, 'handbook', 'p' FROM tenant;
INSERT INTO document (tenant_id, bank_id, id, source, title, text, access, metadata)
    SELECT tenant_id, bank.id, d.id, 'a.md', 'Title', 'text ' || d.id, '{group:hr}', '{"of": 1}'
    FROM bank, unnest('{done,edited,failed}'::text[]) d (id);
UPDATE document SET split_revision = revision;
INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading, start_at, end_at, hash)
    SELECT tenant_id, bank_id, id, 0, text, '', 0, 1, md5(text) FROM document;
INSERT INTO memory_key (tenant_id, chunk_id, profile_id, bank_id, document_id, embedding)
    SELECT tenant_id, id, 'p', bank_id, document_id, '[1,0,0]' FROM chunk;
INSERT INTO memory_blob (tenant_id, chunk_id, profile_id, sha256, payload)
    SELECT tenant_id, chunk_id, 'p', 'h', 'kv' FROM memory_key;
DELETE FROM outbox;
UPDATE document SET text = 'y' WHERE id = 'edited';
INSERT INTO dead_letter (tenant_id, bank_id, document_id, chunk_id, attempts, error)
    SELECT tenant_id, bank_id, document_id, id, 5, 'why' FROM chunk WHERE document_id = 'failed';
"""
TABLES = (
    *("tenant", "principal", "principal_group", "group_member", "encoder_profile", "bank"),
    *("document", "chunk", "memory_key", "memory_blob", "outbox", "dead_letter"),
)
COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
"""


@pytest.fixture
def database(own_database: str) -> str:
    """At the first revision, with rows of two tenants in every table."""
    move("down", FIRST)
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute(FILL)
    return own_database


def move(way: str, revision: str) -> None:
    if way == "up":
        schema.upgrade(database_url("owner"), revision)
        return
    engine = create_engine(database_url("owner"), poolclass=pool.NullPool)
    with engine.connect() as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()


def columns(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        found = {table: connection.execute(COLUMNS, (table,)).fetchone() for table in TABLES}
    return {table: row[0] for table, row in found.items() if row}


def rows(url: str, of: dict[str, str]) -> dict[str, list[tuple[object, ...]]]:
    """What some columns of each table hold."""
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(f"SELECT {names} FROM {table} ORDER BY {names}").fetchall()
            for table, names in of.items()
        }


def test_nothing_is_lost_on_the_way_up_and_down(database: str) -> None:
    first = columns(database)
    before = rows(database, first)
    assert all(len(found) >= 2 for found in before.values())
    move("up", "head")
    assert rows(database, first) == before
    move("down", FIRST)
    assert columns(database) == first
    assert rows(database, first) == before
    move("up", "head")
    assert rows(database, first) == before
    schema.require_safe()


def test_what_was_stored_before_is_served_and_what_waited_waits(database: str) -> None:
    move("up", "head")
    bank = find_bank("harbor", "handbook")
    alice = find_principal("harbor", "alice")
    found = search(alice, bank.id, "p", NORTH, 10)
    assert [(one.document_id, one.text) for one in found] == [
        ("done", "text done"),
        ("failed", "text failed"),
    ]
    blobs = load_blobs(alice, "p", [one.id for one in found])
    assert list(blobs.values()) == [b"kv", b"kv"]
    assert status.queue() == {"pending": 2, "encoding": 0, "failed": 2}


def test_a_migration_gives_up_on_a_table_that_others_hold(database: str) -> None:
    before = columns(database)
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE document IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(MembankError, match="waited 5 seconds"):
            move("up", "head")
    assert columns(database)["document"] == before["document"]
    move("up", "head")
    schema.require_safe()


def test_files_that_wait_fail_on_the_way_down_and_can_be_put_in_again(own_database: str) -> None:
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute(FILL)
        connection.execute(
            "INSERT INTO file (tenant_id, id, principal_id, filename, purpose, bytes, content,"
            " sha256) SELECT tenant_id, 'file-1', id, 'a.md', 'assistants', 1, 'x', 'h'"
            " FROM principal;"
            "INSERT INTO bank_file (tenant_id, bank_id, file_id)"
            " SELECT tenant_id, id, 'file-1' FROM bank"
        )
        of_files = "SELECT count(*) FROM outbox WHERE file_id IS NOT NULL"
        assert connection.execute(of_files).fetchall() == [(2,)]
        others = "SELECT count(*) FROM outbox WHERE document_id IS NOT NULL"
        waiting = connection.execute(others).fetchall()
        move("down", "0014")
        assert connection.execute(others).fetchall() == waiting
        move("up", "head")
        assert connection.execute(of_files).fetchall() == [(0,)]
        told = connection.execute("SELECT DISTINCT state, error FROM bank_file").fetchall()
        assert told == [("failed", "storing it was cut off: attach the file again")]
        connection.execute("UPDATE bank_file SET state = 'storing'")
        assert connection.execute(of_files).fetchall() == [(2,)]
    schema.require_safe()
