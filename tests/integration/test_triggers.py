"""What the database does by itself when a person edits documents with plain SQL."""

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError

from app.queue import outbox
from app.queue.encoding import finish_encoding
from tests.conftest import PROFILE, Company, administer, encoded, pieces_of, work_off

INSERT = (
    "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
    " VALUES (:tenant, :bank, :id, 'psql', 'Title', :body, '')"
)


@pytest.fixture
def split_document(company: Company) -> Company:
    """A company whose document `d` of two chunks is encoded, with nothing left to do."""
    company.store("d", "one\n\ntwo")
    work_off()
    return company


def queued(superuser: psycopg.Connection) -> list[tuple[str, bool, int]]:
    """Outbox rows: document, whether it is to be split, revision."""
    rows = superuser.execute(
        "SELECT document_id, chunk_id IS NULL, revision FROM outbox ORDER BY document_id, id"
    )
    return rows.fetchall()


def test_a_document_inserted_by_hand_waits_to_be_split(
    company: Company, superuser: psycopg.Connection
) -> None:
    administer(INSERT, tenant=company.tenant, bank=company.bank.id, id="d", body="by hand")
    assert queued(superuser) == [("d", True, 1)]
    assert work_off() == 1
    assert superuser.execute("SELECT text FROM chunk").fetchall() == [("by hand",)]


@pytest.mark.parametrize("change", ["text = 'three'", "title = 'Other'", "text = text || '.'"])
def test_an_edit_of_text_or_title_queues_the_document(
    split_document: Company, superuser: psycopg.Connection, change: str
) -> None:
    administer(f"UPDATE document SET {change}")
    assert queued(superuser) == [("d", True, 2)]
    row = superuser.execute("SELECT revision, split_revision FROM document").fetchone()
    assert row == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        "access = '{}'",
        """metadata = '{"a": 1}'""",
        "source = 'elsewhere'",
        "text = text",
        "text = 'one' || E'\\n\\n' || 'two', title = 'Title'",
        "created_at = now()",
    ],
)
def test_an_edit_of_anything_else_queues_nothing(
    split_document: Company, superuser: psycopg.Connection, change: str
) -> None:
    assert administer(f"UPDATE document SET {change}") == 1
    assert queued(superuser) == []
    assert superuser.execute("SELECT revision FROM document").fetchone() == (1,)


def test_revision_and_hash_are_kept_by_the_trigger_and_not_by_who_edits(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    before = superuser.execute("SELECT content_hash FROM document").fetchone()
    administer("UPDATE document SET content_hash = 'forged'")
    assert superuser.execute("SELECT content_hash FROM document").fetchone() == before


def test_two_edits_wait_as_one_row_that_no_worker_holds(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    administer("UPDATE document SET text = 'first edit'")
    [held] = outbox.claim(PROFILE, 10, 60.0)
    assert held.chunk is None
    administer("UPDATE document SET text = 'second edit'")
    assert queued(superuser) == [("d", True, 3)]
    lease = superuser.execute("SELECT lease_token, lease_until, attempts FROM outbox").fetchone()
    assert lease == (None, None, 0)
    [again] = outbox.claim(PROFILE, 10, 60.0)
    assert (again.id, again.revision) == (held.id, 3)


def test_an_edit_of_other_columns_takes_no_lease_away(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    administer("UPDATE document SET text = 'edit'")
    [held] = outbox.claim(PROFILE, 10, 60.0)
    administer("UPDATE document SET access = '{}', source = 'elsewhere'")
    assert superuser.execute("SELECT lease_token FROM outbox").fetchone() == (held.token,)


def test_an_edit_and_its_undoing_end_with_the_same_chunks(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    before = superuser.execute("SELECT id, text FROM chunk ORDER BY id").fetchall()
    administer("UPDATE document SET text = 'edit'")
    administer("UPDATE document SET text = E'one\\n\\ntwo'")
    assert work_off() == 0
    assert superuser.execute("SELECT id, text FROM chunk ORDER BY id").fetchall() == before
    row = superuser.execute("SELECT revision, split_revision FROM document").fetchone()
    assert row == (3, 3)


def test_an_edit_clears_the_failure_to_split_what_was_there_before(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    administer("UPDATE document SET text = 'poison'")
    [work] = outbox.claim(PROFILE, 10, 60.0)
    assert outbox.fail(work, "cannot be split", max_attempts=1)
    status = "SELECT status FROM document_status"
    assert superuser.execute(status).fetchone() == ("failed",)
    administer("UPDATE document SET text = 'mended'")
    assert superuser.execute(status).fetchone() == ("pending",)
    assert work_off() == 1
    assert superuser.execute(status).fetchone() == ("ready",)


def test_deleting_a_document_leaves_nothing_of_it(
    company: Company, superuser: psycopg.Connection
) -> None:
    company.store("other", "stays")
    company.store("d", "one\n\ntwo\n\nthree")
    buried, *rest = [w for w in outbox.claim(PROFILE, 10, 60.0) if w.document == "d"]
    outbox.fail(buried, "no way", max_attempts=1)
    finish_encoding(company.tenant, PROFILE, [encoded(rest[0])])
    tables = ("chunk", "memory_key", "memory_blob", "outbox", "dead_letter")
    counts = "SELECT " + ", ".join(f"(SELECT count(*) FROM {t})" for t in tables)
    assert superuser.execute(counts).fetchone() == (4, 1, 1, 2, 1)
    administer("DELETE FROM document WHERE id = 'd'")
    assert superuser.execute(counts).fetchone() == (1, 0, 0, 1, 0)


def test_deleting_a_tenant_leaves_nothing_of_it(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    split_document.reader("hana", "hr")
    split_document.store("late", "waits")
    administer("DELETE FROM tenant WHERE id = :tenant", tenant=split_document.tenant)
    tables = superuser.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind = 'r'"
        " AND relname NOT IN ('alembic_version', 'context_key', 'audit_event')"
    )
    for (table,) in tables.fetchall():
        assert superuser.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


@pytest.mark.parametrize("change", ["text = 'forged'", "hash = 'forged'"])
def test_the_text_of_a_chunk_cannot_be_changed(split_document: Company, change: str) -> None:
    with pytest.raises(IntegrityError, match="text of a chunk never changes"):
        administer(f"UPDATE chunk SET {change}")


def test_the_place_of_a_chunk_can_be_changed(split_document: Company) -> None:
    assert administer("UPDATE chunk SET ordinal = ordinal + 1, heading = 'moved'") == 2


def test_a_session_that_replays_a_replica_fires_the_triggers_too(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("UPDATE document SET text = 'replayed'")
    assert queued(superuser) == [("d", True, 2)]
    superuser.execute(
        "INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading, start_at,"
        " end_at, hash) VALUES (%s, %s, 'd', 9, 'replayed', '', 0, 8, 'h')",
        [split_document.tenant, split_document.bank.id],
    )
    assert queued(superuser) == [("d", True, 2), ("d", False, 0)]
    with pytest.raises(psycopg.errors.RestrictViolation):
        superuser.execute("UPDATE chunk SET text = 'forged'")


def test_500_documents_in_one_statement_queue_500_rows(
    company: Company, superuser: psycopg.Connection
) -> None:
    made = administer(
        "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
        " SELECT :tenant, :bank, 'd' || i, 'psql', 'Title', 'body ' || i, ''"
        " FROM generate_series(1, 500) i",
        tenant=company.tenant,
        bank=company.bank.id,
    )
    assert made == 500
    assert len(queued(superuser)) == 500
    assert administer("UPDATE document SET text = text || '!' WHERE length(id) = 2") == 9
    found = queued(superuser)
    assert len(found) == 500
    assert sum(revision == 2 for _, _, revision in found) == 9


def test_copy_queues_what_it_brings(company: Company, superuser: psycopg.Connection) -> None:
    with superuser.cursor().copy(
        "COPY document (tenant_id, bank_id, id, source, title, text, content_hash) FROM STDIN"
    ) as copy:
        for name in ("a", "b"):
            copy.write_row([company.tenant, company.bank.id, name, "psql", "Title", "body", ""])
    assert queued(superuser) == [("a", True, 1), ("b", True, 1)]


def test_chunks_of_one_ingest_are_queued_once_each(
    company: Company, superuser: psycopg.Connection
) -> None:
    body = "one\n\ntwo\n\ntwo"
    company.store("d", body)
    assert queued(superuser) == [("d", False, 0)] * len(pieces_of(body))
    company.store("d", body)
    assert len(queued(superuser)) == 3


def test_a_renamed_document_keeps_its_memories_and_its_place_in_the_queue(
    split_document: Company, superuser: psycopg.Connection
) -> None:
    administer("UPDATE document SET text = 'edit'")
    administer("UPDATE document SET id = 'renamed'")
    assert queued(superuser) == [("renamed", True, 2)]
    for table in ("chunk", "memory_key"):
        found = superuser.execute(f"SELECT DISTINCT document_id FROM {table}").fetchall()
        assert found == [("renamed",)], table
    assert work_off() == 1
