"""Documents are written with their chunks, changed by difference, and forgotten whole."""

import hashlib

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.bank.documents import Draft, Receipt, Stored
from app.db.session import Asker
from app.errors import NotFoundError
from app.queue import outbox
from app.queue.encoding import finish_encoding
from tests import edges
from tests.conftest import (
    PROFILE,
    Company,
    administer,
    ask,
    encoded,
    pieces_of,
    work_off,
)

FIVE = ["alpha", "beta", "gamma", "delta", "epsilon"]


def text_of(parts: list[str]) -> str:
    return "\n\n".join(parts)


def chunks(superuser: psycopg.Connection) -> dict[str, int]:
    """Text -> id, in the document's order."""
    return {
        row[0]: row[1] for row in superuser.execute("SELECT text, id FROM chunk ORDER BY ordinal")
    }


class TestStore:
    def test_says_new_then_unchanged_then_changed(self, company: Company) -> None:
        assert company.store("d", text_of(FIVE)) == Stored("new", 5)
        assert company.store("d", text_of(FIVE)) == Stored("unchanged", 5)
        assert company.store("d", text_of(FIVE[:4])) == Stored("changed", 4)
        assert company.store("e", "another") == Stored("new", 1)

    def test_keeps_chunks_and_memories_of_what_stays(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", text_of(FIVE))
        work_off()
        before = chunks(superuser)
        kept = [part for part in FIVE if part != "gamma"]
        company.store("d", text_of([*FIVE[:2], "changed", *FIVE[3:]]))
        after = chunks(superuser)
        assert list(after) == ["alpha", "beta", "changed", "delta", "epsilon"]
        assert {part: after[part] for part in kept} == {part: before[part] for part in kept}
        memories = {row[0] for row in superuser.execute("SELECT chunk_id FROM memory_blob")}
        assert memories == {before[part] for part in kept}
        waiting = superuser.execute("SELECT chunk_id FROM outbox").fetchall()
        assert waiting == [(after["changed"],)]

    def test_moved_chunks_get_their_new_places(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", text_of(FIVE))
        before = chunks(superuser)
        turned = text_of(FIVE[::-1])
        company.store("d", turned)
        assert list(chunks(superuser)) == FIVE[::-1]
        assert chunks(superuser) == before
        for text, start, end in superuser.execute("SELECT text, start_at, end_at FROM chunk"):
            assert turned[start:end] == text

    def test_equal_passages_stay_separate_chunks(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", text_of(["same", "same", "other", "same"]))
        ids = [row[0] for row in superuser.execute("SELECT id FROM chunk ORDER BY ordinal")]
        company.store("d", text_of(["same", "same", "other"]))
        left = [row[0] for row in superuser.execute("SELECT id FROM chunk ORDER BY ordinal")]
        assert left == ids[:3]

    def test_a_text_without_chunks_is_stored_and_served_as_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", text_of(FIVE))
        draft = Draft("d", "d.md", "Title", "", None, {})
        assert edges.store(company.tenant, company.bank.id, draft, []) == Stored("changed", 0)
        assert chunks(superuser) == {}

    def test_is_whole_as_soon_as_it_is_stored(self, company: Company) -> None:
        tenant, bank = company.tenant, company.bank.id
        assert edges.known_hash(tenant, bank, "d") is None
        company.store("d", "body")
        expected = hashlib.sha256(b"Title\nbody").hexdigest()
        assert edges.known_hash(tenant, bank, "d") == expected
        company.store("d", "other body")
        assert edges.known_hash(tenant, bank, "d") not in (None, expected)
        administer("UPDATE document SET text = 'edited'")
        assert edges.known_hash(tenant, bank, "d") is None
        work_off()
        assert edges.known_hash(tenant, bank, "d") is not None

    def test_without_pieces_writes_source_and_list_and_queues_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", text_of(FIVE))
        work_off()
        before = chunks(superuser)
        draft = Draft("d", "moved.md", "Title", text_of(FIVE), ["group:hr"], {"by": "hand"})
        stored = edges.store(company.tenant, company.bank.id, draft, None)
        assert stored.status == "unchanged"
        row = superuser.execute("SELECT source, access, metadata, revision FROM document")
        assert row.fetchall() == [("moved.md", ["group:hr"], {"by": "hand"}, 1)]
        assert chunks(superuser) == before
        assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)

    def test_without_pieces_a_text_that_was_edited_or_deleted_meanwhile_is_split_again(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        """Between known_hash and store an administrator may come, and a worker after them."""
        draft = Draft("d", "d.md", "Title", text_of(FIVE), None, {})
        for meanwhile in ("UPDATE document SET text = 'by hand'", "DELETE FROM document"):
            company.store("d", text_of(FIVE))
            administer(meanwhile)
            work_off()
            edges.store(company.tenant, company.bank.id, draft, None)
            work_off()
            assert list(chunks(superuser)) == FIVE, meanwhile
            row = superuser.execute("SELECT revision = split_revision FROM document").fetchone()
            assert row == (True,), meanwhile

    @pytest.mark.parametrize("listed", [["group:hr"], ["principal:a", "everyone"], []])
    def test_without_a_list_keeps_the_one_that_is_there(
        self, company: Company, superuser: psycopg.Connection, listed: list[str]
    ) -> None:
        access = "SELECT access FROM document"
        company.store("d", "first", listed)
        assert superuser.execute(access).fetchone() == (listed,)
        company.store("d", "second", None)
        assert superuser.execute(access).fetchone() == (listed,)
        company.store("d", "second", ["everyone"])
        assert superuser.execute(access).fetchone() == (["everyone"],)

    def test_a_new_document_without_a_list_is_for_everyone(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "first", None)
        assert superuser.execute("SELECT access FROM document").fetchone() == (["everyone"],)

    def test_overtakes_an_edit_that_waits_to_be_split(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "first")
        administer("UPDATE document SET text = 'by hand'")
        company.store("d", text_of(FIVE))
        row = superuser.execute("SELECT revision = split_revision FROM document").fetchone()
        assert row == (True,)
        ids = chunks(superuser)
        work_off()
        assert chunks(superuser) == ids
        assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


class TestForget:
    def test_says_what_it_removed_and_leaves_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("other", "stays")
        company.store("d", text_of(FIVE))
        work = [w for w in outbox.claim(PROFILE, 10, 60.0) if w.document == "d"]
        finish_encoding(company.tenant, PROFILE, [encoded(one) for one in work[:3]])
        receipt = edges.forget(company.tenant, "d")
        assert receipt == Receipt(documents=1, chunks=5, keys=3, blobs=3, queue=2)
        for table in ("chunk", "memory_key", "outbox"):
            rows = superuser.execute(f"SELECT count(*) FROM {table} WHERE document_id = 'd'")
            assert rows.fetchone() == (0,), table
        assert superuser.execute("SELECT count(*) FROM memory_blob").fetchone() == (0,)
        assert superuser.execute("SELECT id FROM document").fetchall() == [("other",)]
        with pytest.raises(NotFoundError, match="'d'"):
            edges.forget(company.tenant, "d")

    def test_one_bank_or_all_banks_of_the_tenant(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        second = documents_in_a_second_bank(company)
        company.store("d", "one\n\ntwo")
        second.store("d", "three")
        assert edges.forget(company.tenant, "d", second.bank.id).chunks == 1
        second.store("d", "three")
        assert edges.forget(company.tenant, "d") == Receipt(2, 3, 0, 0, 3)

    def test_another_tenants_document_of_that_id_stays(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "ours")
        with pytest.raises(NotFoundError):
            edges.forget(company.tenant + 1, "d")
        assert superuser.execute("SELECT id FROM document").fetchall() == [("d",)]


def documents_in_a_second_bank(company: Company) -> Company:
    from tests.edges import add_bank

    return Company(company.name, add_bank(company.name, "second", PROFILE, "{}"))


HOSTILE = [
    "it's",
    '"quoted"',
    "100% %s %(name)s %%",
    ":name :1 ::text",
    "back\\slash \\n \\x41 E'\\''",
    "$$ $1 $tag$ ; DROP TABLE document; --",
    "/* comment */ {curly} {{0}} ?",
    "emoji 🏳️‍🌈👩🏽‍🚀",
    "עברית العربية \u202e reversed \u202c",
    "e\u0301 is not \u00e9",
    "\t tab \r\n line \x0b \x7f \ufeff",
    "' OR '1'='1",
    "NULL",
    "{a,b}",
    " ",
]


class TestHostileText:
    @staticmethod
    def check(company: Company, name: str, body: str) -> None:
        """Store, read, list, encode and forget a document of that id, title and text."""
        draft = Draft(name, name, body, body, [f"principal:{name}"], {name: body})
        edges.store(company.tenant, company.bank.id, draft, pieces_of(body))
        assert edges.read_text(company.tenant, company.bank.id, name) == (body, body, 1)
        known = edges.known_hash(company.tenant, company.bank.id, name)
        assert known == hashlib.sha256(f"{body}\n{body}".encode()).hexdigest()
        rows = ask(
            Asker("admin"), "SELECT source, access, metadata FROM document WHERE id = :id", id=name
        )
        assert rows == [(name, [f"principal:{name}"], {name: body})]
        stored = ask(Asker("admin"), "SELECT text FROM chunk ORDER BY ordinal")
        assert [text for (text,) in stored] == body.split("\n\n")
        assert work_off() == len(stored)
        assert edges.forget(company.tenant, name).documents == 1

    @pytest.mark.parametrize("body", HOSTILE)
    def test_comes_back_as_it_went_in(self, company: Company, body: str) -> None:
        self.check(company, body, body)

    # Postgres holds every character but NUL.
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")

    @settings(max_examples=15)
    @given(name=st.text(characters, min_size=1, max_size=40), body=st.text(characters))
    @example(name="x" * 512, body="\n\n\n\n")
    def test_any_characters_come_back_as_they_went_in(
        self, company: Company, name: str, body: str
    ) -> None:
        self.check(company, name, body)
