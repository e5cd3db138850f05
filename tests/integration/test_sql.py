"""Every way in by SQL that an administrator has: COPY, MERGE, ON CONFLICT, TRUNCATE."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from app.db.addresses import database_url
from tests.conftest import Company, work_off

TABLES = ("chunk", "memory_key", "memory_blob", "outbox", "dead_letter")


@pytest.fixture
def admin(company: Company) -> Iterator[psycopg.Connection]:
    """As a person has it who is logged in as membank_admin; `harbor` has one bank, `handbook`."""
    url = database_url("admin").set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("membank_admin",)
        yield connection


@pytest.fixture
def encoded_documents(company: Company) -> Company:
    """Documents `a` and `b` of two chunks each, encoded, with nothing left to do."""
    company.store("a", "one\n\ntwo", access=["everyone"])
    company.store("b", "three\n\nfour", access=["everyone"])
    assert work_off() == 4
    return company


def load(
    connection: psycopg.Connection, rows: Sequence[Sequence[Any]], columns: str = "id, text"
) -> None:
    copy(connection, f"tenant, bank, {columns}", [["harbor", "handbook", *row] for row in rows])


def copy(connection: psycopg.Connection, columns: str, rows: Sequence[Sequence[Any]]) -> None:
    with connection.cursor().copy(f"COPY document_load ({columns}) FROM STDIN") as c:
        for row in rows:
            c.write_row(row)


def queued(connection: psycopg.Connection) -> list[tuple[str, int]]:
    rows = connection.execute(
        "SELECT document_id, revision FROM outbox WHERE chunk_id IS NULL ORDER BY 1"
    )
    return rows.fetchall()


def chunks(connection: psycopg.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT text, id FROM chunk").fetchall())


def test_copy_brings_documents_by_names_and_keeps_nothing_itself(
    admin: psycopg.Connection,
) -> None:
    load(admin, [("a", "one\n\ntwo"), ("b", "three")])
    assert queued(admin) == [("a", 1), ("b", 1)]
    found = admin.execute("SELECT title, source, access, metadata FROM document WHERE id = 'a'")
    assert found.fetchone() == ("a", "a", ["everyone"], {})
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        admin.execute("SELECT FROM document_load")
    assert work_off() == 3
    assert sorted(chunks(admin)) == ["one", "three", "two"]


def test_copy_of_every_column(admin: psycopg.Connection) -> None:
    row = ("a", "one", "The title", "a.md", ["group:hr"], json.dumps({"of": "copy"}))
    load(admin, [row], "id, text, title, source, access, metadata")
    found = admin.execute("SELECT id, text, title, source, access, metadata FROM document")
    assert found.fetchone() == (*row[:5], {"of": "copy"})


def test_copy_over_known_documents_queues_those_whose_text_is_another(
    encoded_documents: Company, admin: psycopg.Connection
) -> None:
    before = chunks(admin)
    load(admin, [("a", "one\n\ntwo"), ("b", "three\n\nfive")])
    assert queued(admin) == [("b", 2)]
    assert work_off() == 1
    after = chunks(admin)
    assert sorted(after) == ["five", "one", "three", "two"]
    assert {text: after[text] for text in ("one", "two", "three")} == {
        text: before[text] for text in ("one", "two", "three")
    }
    kept = admin.execute("SELECT title, source, metadata FROM document WHERE id = 'b'").fetchone()
    assert kept == ("Title", "b.md", {"of": "harbor"})


def test_the_last_of_two_rows_for_one_document_counts(admin: psycopg.Connection) -> None:
    load(admin, [("a", "first"), ("a", "second")])
    assert work_off() == 1
    assert list(chunks(admin)) == ["second"]


@pytest.mark.parametrize(
    ("row", "reason", "way_out"),
    [
        (("ghost", "handbook", "a", "x", None), "no such tenant", "membank tenant add"),
        (("harbor", "ghost", "a", "x", None), "no such bank", "membank bank add"),
        (("harbor", "handbook", "", "x", None), "1 to 512", "id of its own"),
        (("harbor", "handbook", None, "x", None), "1 to 512", "id of its own"),
        (("harbor", "handbook", "a", " \n", None), "text is empty", "Leave the row out"),
        (("harbor", "handbook", "a", None, None), "text is empty", "Leave the row out"),
        (("harbor", "handbook", "a", "x", ["hr"]), "'hr' is no access entry", "group:NAME"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_and_nothing_is_loaded(
    admin: psycopg.Connection, row: tuple[Any, ...], reason: str, way_out: str
) -> None:
    good = ("harbor", "handbook", "good", "goes with the others", None)
    with pytest.raises(psycopg.Error, match=reason) as raised:
        copy(admin, "tenant, bank, id, text, access", [good, row])
    said = raised.value.diag
    assert way_out in (said.message_hint or "")
    assert "line 2" in (said.context or "")
    assert admin.execute("SELECT count(*) FROM document").fetchone() == (0,)


@pytest.mark.parametrize("role", ["app", "worker"])
def test_only_an_administrator_loads(company: Company, role: Any) -> None:
    url = database_url(role).set(drivername="postgresql").render_as_string(False)
    with (
        psycopg.connect(url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        load(connection, [("a", "one")])


def test_merge_makes_stale_the_chunks_whose_text_changed(
    encoded_documents: Company, admin: psycopg.Connection
) -> None:
    before = chunks(admin)
    admin.execute(
        "MERGE INTO document d USING (VALUES ('a', E'one\\n\\nzwei'), ('b', E'three\\n\\nfour'),"
        " ('c', 'new'), ('d', 'gone')) s (id, body)"
        " ON d.tenant_id = %(tenant)s AND d.bank_id = %(bank)s AND d.id = s.id"
        " WHEN MATCHED THEN UPDATE SET text = s.body"
        " WHEN NOT MATCHED THEN INSERT (tenant_id, bank_id, id, source, title, text)"
        " VALUES (%(tenant)s, %(bank)s, s.id, 'psql', 'Title', s.body)",
        {"tenant": encoded_documents.tenant, "bank": encoded_documents.bank.id},
    )
    assert queued(admin) == [("a", 2), ("c", 1), ("d", 1)]
    admin.execute(
        "MERGE INTO document d USING (VALUES ('d')) s (id) ON d.id = s.id WHEN MATCHED THEN DELETE"
    )
    assert queued(admin) == [("a", 2), ("c", 1)]
    assert work_off() == 2
    after = chunks(admin)
    assert sorted(after) == ["four", "new", "one", "three", "zwei"]
    assert [after[text] for text in ("one", "three", "four")] == [
        before[text] for text in ("one", "three", "four")
    ]


def test_on_conflict_queues_what_changed_and_metadata_and_lists_nothing(
    encoded_documents: Company, admin: psycopg.Connection
) -> None:
    upsert = (
        "INSERT INTO document (tenant_id, bank_id, id, source, title, text, access, metadata)"
        " SELECT %s, %s, id, 'psql', 'Title', body, '{group:hr}', '{\"by\": \"psql\"}'"
        " FROM (VALUES ('a', E'one\\n\\ntwo'), ('b', %s)) s (id, body)"
        " ON CONFLICT (tenant_id, bank_id, id) DO UPDATE SET text = excluded.text,"
        " source = excluded.source, access = excluded.access, metadata = excluded.metadata"
    )
    whose = [encoded_documents.tenant, encoded_documents.bank.id]
    admin.execute(upsert, [*whose, "three\n\nfour"])
    assert queued(admin) == []
    admin.execute(upsert, [*whose, "three\n\nfive"])
    assert queued(admin) == [("b", 2)]
    assert work_off() == 1


def test_truncate_leaves_nothing_of_any_document(
    encoded_documents: Company, admin: psycopg.Connection
) -> None:
    encoded_documents.store("late", "waits")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        admin.execute("TRUNCATE document")
    admin.execute("TRUNCATE document CASCADE")
    for table in ("document", *TABLES):
        assert admin.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    encoded_documents.store("a", "one")
    assert work_off() == 1


def test_truncated_chunks_are_made_again(
    encoded_documents: Company, admin: psycopg.Connection
) -> None:
    admin.execute("TRUNCATE chunk CASCADE")
    assert queued(admin) == [("a", 1), ("b", 1)]
    assert work_off() == 4
    assert sorted(chunks(admin)) == ["four", "one", "three", "two"]
