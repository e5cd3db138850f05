"""Search is exact, under the asker's rights, and blind to everything else in the database."""

import re
from collections.abc import Callable, Iterable

import numpy as np
import psycopg
import pytest
from sqlalchemy import text

from app.db.session import Asker, transaction
from app.queue import outbox
from app.queue.encoding import finish_encoding
from app.search.search import Passage, search
from app.store.blobs import _READABLE, load_blobs, readable
from tests.conftest import NORTH, PROFILE, Company, administer, ask, encoded, work_off

Vector = tuple[float, float, float]


@pytest.fixture
def alice(company: Company) -> Asker:
    return company.reader("alice")


@pytest.fixture
def hana(company: Company) -> Asker:
    return company.reader("hana", "hr")


def at_angle(degrees: float) -> Vector:
    """A key at that angle from NORTH."""
    return (float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees))), 0.0)


def fill(
    company: Company, name: str, angles: Iterable[float], access: list[str] | None = None
) -> None:
    """A document with one encoded chunk for each angle."""
    texts = {f"{name} at {angle:g}": at_angle(angle) for angle in angles}
    company.store(name, "\n\n".join(texts), access)
    work_off(texts)


def find(asker: Asker, company: Company, k: int, vector: Vector = NORTH) -> list[Passage]:
    return search(asker, company.bank.id, PROFILE, vector, k)


def texts(passages: list[Passage]) -> list[str]:
    return [passage.text for passage in passages]


class TestOrder:
    def test_is_that_of_the_cosine(self, company: Company, alice: Asker) -> None:
        random = np.random.default_rng(7)
        keys = random.normal(size=(60, 3)).astype(np.float16).astype(np.float64)
        names = [f"chunk {i}" for i in range(len(keys))]
        company.store("d", "\n\n".join(names))
        work_off(dict(zip(names, keys.tolist(), strict=True)))
        for question in random.normal(size=(5, 3)):
            rounded = question.astype(np.float16).astype(np.float64)
            cosines = keys @ rounded / np.linalg.norm(keys, axis=1) / np.linalg.norm(rounded)
            order = np.argsort(-cosines)[:20]
            found = find(alice, company, 20, (rounded[0], rounded[1], rounded[2]))
            assert texts(found) == [names[i] for i in order]
            assert [p.score for p in found] == pytest.approx(cosines[order], abs=1e-5)

    def test_ties_come_in_the_order_of_the_chunks(self, company: Company, alice: Asker) -> None:
        company.store("d", "\n\n".join(f"chunk {i}" for i in range(10)))
        work_off()
        assert texts(find(alice, company, 4)) == [f"chunk {i}" for i in range(4)]

    def test_a_passage_says_where_it_is_from(self, company: Company, alice: Asker) -> None:
        company.store("d", "the text", title="The title")
        work_off()
        [passage] = find(alice, company, 5)
        assert (passage.document_id, passage.title, passage.source) == ("d", "The title", "d.md")
        assert passage.text == "the text"
        assert passage.score == pytest.approx(1.0)

    def test_an_empty_bank_gives_nothing(self, company: Company, alice: Asker) -> None:
        assert find(alice, company, 5) == []


class TestRights:
    def test_k_rows_come_back_although_many_nearer_ones_may_not_be_read(
        self, company: Company, alice: Asker, hana: Asker
    ) -> None:
        fill(company, "secret", [i / 10 for i in range(60)], ["group:hr"])
        fill(company, "public", [40, 50, 60, 70, 80, 85])
        assert texts(find(alice, company, 5)) == [f"public at {a}" for a in (40, 50, 60, 70, 80)]
        assert {p.document_id for p in find(hana, company, 5)} == {"secret"}
        assert len(find(hana, company, 100)) == 66

    def test_unreadable_rows_change_neither_scores_nor_order(
        self, company: Company, alice: Asker
    ) -> None:
        fill(company, "public", range(0, 90, 10))
        before = find(alice, company, 5)
        fill(company, "secret", range(0, 90, 5), ["group:hr"])
        assert find(alice, company, 5) == before

    def test_rows_of_other_tenants_change_neither_scores_nor_order(
        self, company: Company, alice: Asker, new_company: Callable[[str], Company]
    ) -> None:
        fill(company, "public", range(1, 90, 10))
        before = [find(alice, company, k) for k in (1, 5, 100)]
        other = new_company("northwind")
        fill(other, "public", [i / 10 for i in range(50)])
        assert [find(alice, company, k) for k in (1, 5, 100)] == before

    def test_another_tenants_bank_gives_nothing(
        self, alice: Asker, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("northwind")
        fill(other, "public", [0, 10])
        assert find(alice, other, 5) == []

    def test_without_a_principal_nothing_is_found(self, company: Company) -> None:
        fill(company, "public", [0, 10])
        assert find(Asker("app", company.tenant), company, 5) == []
        assert find(Asker("app"), company, 5) == []


class TestWhatIsServed:
    def test_an_edited_document_is_not_served_until_it_is_encoded_again(
        self, company: Company, alice: Asker
    ) -> None:
        fill(company, "edited", [0, 5])
        fill(company, "other", [30, 40])
        administer("UPDATE document SET text = 'new words' WHERE id = 'edited'")
        assert texts(find(alice, company, 5)) == ["other at 30", "other at 40"]
        work_off({"new words": at_angle(35)})
        assert texts(find(alice, company, 5)) == ["other at 30", "new words", "other at 40"]

    def test_an_edit_of_the_list_counts_at_once(self, company: Company, alice: Asker) -> None:
        fill(company, "d", [0])
        administer("UPDATE document SET access = '{group:hr}'")
        assert find(alice, company, 5) == []
        administer("UPDATE document SET access = '{principal:alice}'")
        assert len(find(alice, company, 5)) == 1

    def test_keys_of_another_profile_are_not_found(self, company: Company, alice: Asker) -> None:
        fill(company, "d", [30])
        for profile, key in (("other", "[1,0,0]"), ("of four dimensions", "[1,0,0,0]")):
            administer(
                "INSERT INTO memory_key (tenant_id, chunk_id, profile_id, bank_id, document_id,"
                " embedding) SELECT tenant_id, id, :profile, bank_id, document_id,"
                " cast(:key AS halfvec) FROM chunk",
                profile=profile,
                key=key,
            )
        [found] = find(alice, company, 5)
        assert found.score == pytest.approx(np.cos(np.radians(30)), abs=1e-3)
        [other] = search(alice, company.bank.id, "other", NORTH, 5)
        assert other.score == pytest.approx(1.0)

    def test_another_bank_of_the_tenant_is_not_searched(
        self, company: Company, alice: Asker
    ) -> None:
        fill(company, "d", [30])
        assert search(alice, company.bank.id + 1, PROFILE, NORTH, 5) == []


class TestReadable:
    def test_looks_at_the_memories_that_are_asked_for_and_at_no_others(
        self, company: Company, alice: Asker, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "\n\n".join(f"chunk {i}" for i in range(1500)))
        work_off()
        superuser.execute("ANALYZE")
        chunks = [p.id for p in find(alice, company, 20)]
        values = {"tenant": company.tenant, "profile": PROFILE, "chunks": chunks}
        with transaction(alice) as connection:
            plan = connection.execute(text(f"EXPLAIN ANALYZE {_READABLE.text}"), values).scalars()
            told = "\n".join(plan)
        assert max(map(int, re.findall(r"loops=(\d+)", told))) <= len(chunks), told
        assert list(readable(alice, PROFILE, chunks)) == chunks


class TestBlobs:
    def test_come_as_the_bytes_that_were_written(self, company: Company, alice: Asker) -> None:
        payload = bytes(range(256)) * 500
        company.store("d", "body")
        [work] = outbox.claim(PROFILE, 10, 60.0)
        finish_encoding(company.tenant, PROFILE, [encoded(work, payload=payload)])
        [found] = find(alice, company, 1)
        blobs = load_blobs(alice, PROFILE, [found.id])
        assert blobs == {found.id: payload}
        assert type(blobs[found.id]) is bytes

    def test_of_what_may_not_be_read_are_left_out(
        self, company: Company, alice: Asker, hana: Asker, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("northwind")
        fill(company, "public", [0])
        fill(company, "secret", [0], ["group:hr"])
        fill(other, "public", [0])
        every = [row[0] for row in ask(Asker("admin"), "SELECT id FROM chunk ORDER BY id")]
        assert len(every) == 3
        assert load_blobs(alice, PROFILE, every) == {every[0]: b"kv of public at 0"}
        assert set(load_blobs(hana, PROFILE, every)) == set(every[:2])
        assert load_blobs(Asker("app", company.tenant), PROFILE, every) == {}

    def test_of_another_profile_and_of_no_chunk_are_left_out(
        self, company: Company, alice: Asker
    ) -> None:
        fill(company, "d", [0])
        [found] = find(alice, company, 1)
        assert load_blobs(alice, "other", [found.id]) == {}
        assert load_blobs(alice, PROFILE, [found.id + 1000]) == {}
        assert load_blobs(alice, PROFILE, []) == {}
