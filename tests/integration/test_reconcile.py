"""What changed while triggers were really off is not served, and is found and queued."""

import json
import threading
from collections.abc import Callable

import psycopg
import pytest
from typer.testing import CliRunner

from app import cli
from app.queue import outbox
from app.search.search import search
from app.settings import settings
from app.store.blobs import readable
from app.upkeep.reconcile import Found, reconcile
from tests.conftest import NORTH, PROFILE, Company, work_off

NOTHING = Found(1, 0, 0, 0, 0)
TABLES = ("chunk", "memory_key", "memory_blob", "outbox", "dead_letter")


@pytest.fixture
def database(own_database: str) -> str:
    return own_database


@pytest.fixture
def whole(company: Company) -> Company:
    """Documents `a` and `b` of two chunks each, encoded, with nothing left to do."""
    company.store("a", "one\n\ntwo")
    company.store("b", "three\n\nfour")
    assert work_off() == 4
    assert reconcile() == NOTHING
    return company


def off(superuser: psycopg.Connection, *tables: str) -> None:
    for table in tables:
        superuser.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")


def on(superuser: psycopg.Connection, *tables: str) -> None:
    for table in tables:
        superuser.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")
    for table, trigger in superuser.execute(
        "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal"
        " AND tgrelid::regclass::text IN ('document', 'chunk')"
    ).fetchall():
        superuser.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")


def texts(superuser: psycopg.Connection) -> list[str]:
    return [text for (text,) in superuser.execute("SELECT text FROM chunk ORDER BY text")]


def served(company: Company) -> list[str]:
    asker = company.reader("hana")
    found = search(asker, company.bank.id, PROFILE, NORTH, 10)
    assert set(readable(asker, PROFILE, [p.id for p in found])) == {p.id for p in found}
    return sorted(passage.text for passage in found)


@pytest.mark.parametrize("still_off", [False, True])
def test_a_text_changed_with_triggers_off_is_not_served_and_is_encoded_again(
    whole: Company, superuser: psycopg.Connection, still_off: bool
) -> None:
    kept = superuser.execute("SELECT id FROM chunk WHERE text = 'one'").fetchone()
    asker = whole.reader("hana")
    before = {p.id for p in search(asker, whole.bank.id, PROFILE, NORTH, 10)}
    off(superuser, "document")
    superuser.execute("UPDATE document SET text = E'one\\n\\nzwei' WHERE id = 'a'")
    assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    assert served(whole) == ["four", "three"]
    assert len(readable(asker, PROFILE, sorted(before))) == 2
    if not still_off:
        on(superuser, "document")
    found = reconcile()
    assert (found.changed_documents, found.queued_documents) == (1, int(still_off))
    assert served(whole) == ["four", "three"]
    assert work_off() == 1
    assert served(whole) == ["four", "one", "three", "zwei"]
    assert superuser.execute("SELECT id FROM chunk WHERE text = 'one'").fetchone() == kept
    assert reconcile() == NOTHING


def test_documents_that_came_with_triggers_off_are_queued(
    whole: Company, superuser: psycopg.Connection
) -> None:
    off(superuser, "document")
    superuser.execute(
        "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
        " SELECT %s, %s, 'new' || i, 'restore', 'Title', 'body ' || i, ''"
        " FROM generate_series(1, 2001) i",
        [whole.tenant, whole.bank.id],
    )
    on(superuser, "document")
    assert reconcile().changed_documents == 2001
    assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (2001,)
    assert reconcile() == NOTHING


def test_chunks_without_memory_are_queued(whole: Company, superuser: psycopg.Connection) -> None:
    superuser.execute("DELETE FROM memory_blob WHERE chunk_id = (SELECT min(id) FROM chunk)")
    superuser.execute("DELETE FROM memory_key WHERE chunk_id = (SELECT max(id) FROM chunk)")
    assert reconcile() == Found(1, 0, 0, 2, 0)
    assert work_off() == 2
    assert served(whole) == ["four", "one", "three", "two"]
    assert reconcile() == NOTHING


def test_an_emptied_outbox_is_filled_again(whole: Company, superuser: psycopg.Connection) -> None:
    whole.store("c", "five\n\nsix")
    superuser.execute("UPDATE document SET text = 'edit' WHERE id = 'a'")
    superuser.execute("TRUNCATE outbox")
    assert reconcile() == Found(1, 0, 1, 2, 0)
    assert work_off() == 3
    assert texts(superuser) == ["edit", "five", "four", "six", "three"]


def test_what_waits_is_held_or_has_failed_is_left_as_it_is(
    whole: Company, superuser: psycopg.Connection
) -> None:
    whole.store("c", "five\n\nsix\n\nseven")
    superuser.execute("UPDATE document SET text = 'poison' WHERE id = 'b'")
    split, *rest = sorted(outbox.claim(PROFILE, 3, 60.0), key=lambda one: one.chunk or 0)
    assert split.chunk is None
    outbox.fail(split, "no way", max_attempts=1)
    outbox.fail(rest[0], "no way", max_attempts=1)
    rows = "SELECT * FROM outbox ORDER BY id"
    before = superuser.execute(rows).fetchall()
    assert len(before) == 2
    assert reconcile() == NOTHING
    assert superuser.execute(rows).fetchall() == before


def test_what_a_deletion_with_triggers_off_left_is_removed(
    whole: Company, superuser: psycopg.Connection
) -> None:
    whole.store("c", "five")
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("DELETE FROM document WHERE id IN ('a', 'c')")
    superuser.execute("DELETE FROM chunk WHERE text = 'three'")
    superuser.execute("RESET session_replication_role")
    assert texts(superuser) == ["five", "four", "one", "two"]
    assert served(whole) == ["four"]
    assert reconcile().orphans > 0
    assert texts(superuser) == ["four"]
    counts = "SELECT " + ", ".join(f"(SELECT count(*) FROM {t})" for t in TABLES)
    assert superuser.execute(counts).fetchone() == (1, 1, 1, 0, 0)
    assert reconcile() == NOTHING


def test_a_document_that_someone_edits_is_passed_by(
    whole: Company, database: str, superuser: psycopg.Connection
) -> None:
    off(superuser, "document")
    superuser.execute("UPDATE document SET text = text || '!'")
    on(superuser, "document")
    with psycopg.connect(database) as other:
        other.execute("UPDATE document SET access = access WHERE id = 'a'")
        assert reconcile().changed_documents == 1
    # The edit itself made its document right.
    assert reconcile() == NOTHING
    assert served(whole) == []
    assert work_off() == 2
    assert served(whole) == ["four!", "one", "three", "two!"]


def test_every_tenant_is_looked_at_and_none_gets_anothers_work(
    whole: Company, new_company: Callable[[str], Company], superuser: psycopg.Connection
) -> None:
    other = new_company("quay")
    other.store("a", "one")
    superuser.execute("TRUNCATE outbox")
    superuser.execute("DELETE FROM memory_key WHERE tenant_id = %s", [whole.tenant])
    assert reconcile() == Found(2, 0, 0, 5, 0)
    counts = superuser.execute("SELECT tenant_id, count(*) FROM outbox GROUP BY 1 ORDER BY 1")
    assert counts.fetchall() == [(whole.tenant, 4), (other.tenant, 1)]


def test_the_command_tells_what_it_found(whole: Company, superuser: psycopg.Connection) -> None:
    superuser.execute("DELETE FROM memory_key")
    result = CliRunner().invoke(cli.app, ["reconcile", "--json"])
    assert json.loads(result.stdout) == {
        "tenants": 1,
        "changed_documents": 0,
        "queued_documents": 0,
        "queued_chunks": 4,
        "orphans": 0,
        "former_memories": 0,
        "queued_files": 0,
    }
    assert "nothing to reconcile" in CliRunner().invoke(cli.app, ["reconcile"]).stdout


def test_the_relay_reconciles_by_itself(
    whole: Company, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMBANK_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    from workers.maintenance import rows_regularly

    superuser.execute("DELETE FROM memory_key")
    stop = threading.Event()
    relay = threading.Thread(target=rows_regularly, args=(stop,))
    relay.start()
    try:
        for _ in range(600):
            if superuser.execute("SELECT count(*) FROM outbox").fetchone() == (4,):
                break
            stop.wait(0.1)
    finally:
        stop.set()
        relay.join()
    assert work_off() == 4
