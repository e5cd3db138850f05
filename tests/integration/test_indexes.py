"""Indexes of large banks: when there are any, whose rows they hold, and that searches use them."""

import re
import threading

import psycopg
import pytest
from sqlalchemy import text

from app.bank.filters import Filter, of_options
from app.db.session import Asker, transaction
from app.errors import UsageError
from app.local.processes import wait_until
from app.search import nearest
from app.search.indexes import index_name, keep
from app.search.nearest import Nearest, Way
from app.search.search import search
from app.settings import settings
from benchmarks.search_rows import PROFILE, Filled, Keys, Rows
from tests.conftest import NORTH, Company, administer, work_off
from tests.conftest import PROFILE as OF_THE_TESTS


@pytest.fixture
def database(own_database: str) -> str:
    """Its own, since indexes are made in it."""
    return own_database


@pytest.fixture
def rows(database: str) -> Rows:
    return Rows(database, Keys(0))


@pytest.fixture
def large(rows: Rows) -> Filled:
    """A tenant of 4,000 memories, beside one of 500."""
    rows.tenant("small", 500)
    filled = rows.tenant("large", 4000)
    rows.settle()
    return filled


def name_of(filled: Filled) -> str:
    return index_name(filled.bank.tenant, filled.bank.id, PROFILE)


def names(superuser: psycopg.Connection) -> set[str]:
    rows = superuser.execute("SELECT relname FROM pg_class WHERE relname LIKE 'memory_key_near_%'")
    return {row[0] for row in rows}


def plan(filled: Filled, share: int, way: Way) -> str:
    """How the database finds the nearest, with what it did."""
    asker = filled.readers[share]
    near = Nearest(asker, filled.bank.id, PROFILE, filled.keys[0].tolist())
    query, values = near.statement(way, 100)
    with transaction(asker) as connection:
        assert near.ready(connection, 100) == (way != "all")
        if way == "documents":
            connection.execute(nearest._TOGETHER)
        lines = connection.execute(text(f"EXPLAIN (ANALYZE) {query.text}"), values).scalars()
        return "\n".join(line for line in lines if "Filter:" not in line)


class TestKeeping:
    def test_large_banks_get_one_and_small_ones_none(
        self, large: Filled, superuser: psycopg.Connection
    ) -> None:
        kept = keep(1000)
        assert (kept.made, kept.dropped, kept.indexes) == ([name_of(large)], [], 1)
        assert names(superuser) == {name_of(large)}
        assert keep(1000).made == []

    def test_it_holds_the_rows_of_its_bank_alone(
        self, large: Filled, superuser: psycopg.Connection
    ) -> None:
        keep(1000)
        [row] = superuser.execute(
            "SELECT reltuples::int FROM pg_class WHERE relname = %s", (name_of(large),)
        ).fetchall()
        assert row[0] == 4000

    def test_it_goes_when_the_bank_is_half_as_large_and_not_before(self, large: Filled) -> None:
        keep(1000)
        assert keep(7999).dropped == []
        assert keep(8001).dropped == [name_of(large)]

    def test_it_goes_with_its_bank(self, large: Filled) -> None:
        keep(1000)
        administer("DELETE FROM tenant WHERE name = 'large'")
        assert keep(1000).dropped == [name_of(large)]

    def test_one_that_was_never_finished_is_made_again(
        self, large: Filled, superuser: psycopg.Connection
    ) -> None:
        keep(1000)
        superuser.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
            (name_of(large),),
        )
        found = find(large, 100)
        kept = keep(1000)
        assert kept.made == kept.dropped == [name_of(large)]
        assert find(large, 100) == found

    def test_two_do_not_make_it_at_once(self, large: Filled, database: str) -> None:
        with psycopg.connect(database) as other:
            other.execute("SELECT pg_advisory_lock(727268)")
            assert keep(1000).made == []
        assert keep(1000).made == [name_of(large)]

    def test_none_is_begun_after_the_stop(self, large: Filled) -> None:
        stop = threading.Event()
        stop.set()
        assert keep(1000, stop).made == []

    def test_without_the_owner_it_says_what_is_missing(
        self, large: Filled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMBANK_DATABASE_URL", "postgresql://membank_app@127.0.0.1/membank")
        settings.cache_clear()
        with pytest.raises(UsageError, match="MEMBANK_OWNER_DATABASE_URL"):
            keep(1000)
        settings.cache_clear()

    def test_new_memories_are_found_through_it(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "\n\n".join(f"chunk {i}" for i in range(60)))
        work_off()
        keep(50)
        company.store("new", "new words")
        work_off({"new words": (0.0, 1.0, 0.0)})
        alice = company.reader("alice")
        [found] = search(alice, company.bank.id, OF_THE_TESTS, (0.0, 1.0, 0.0), 1)
        assert found.text == "new words"


def find(filled: Filled, share: int) -> list[int]:
    asked = filled.keys[17].tolist()
    found = search(filled.readers[share], filled.bank.id, PROFILE, asked, 10)
    return [passage.id for passage in found]


class TestPlans:
    def test_an_index_brings_the_nearest_and_rights_are_looked_up_for_these(
        self, large: Filled
    ) -> None:
        keep(1000)
        told = plan(large, 100, "index")
        assert f"Index Scan using {name_of(large)}" in told
        # Neither all keys nor all documents are read.
        assert "memory_key_bank" not in told
        for line in told.splitlines():
            if "on document" in line and not re.search("document_(pkey|rights)", line):
                assert "never executed" in line or "rows=0.00" in line, line

    def test_a_reader_of_few_documents_is_served_by_these(self, large: Filled) -> None:
        keep(1000)
        told = plan(large, 1, "documents")
        assert "Index Scan using memory_key_document" in told
        assert name_of(large) not in told
        # Rights are read in indexes: from the documents' own pages they take five times as long.
        assert "Index Only Scan using document_served" in told
        assert "Index Only Scan using document_rights" in told

    def test_a_bank_without_an_index_is_searched_by_its_own_keys(self, large: Filled) -> None:
        told = plan(large, 100, "all")
        assert "memory_key_bank" in told
        assert "Seq Scan on memory_key" not in told

    def test_way_follows_from_what_the_asker_may_read(
        self, large: Filled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ways: list[str] = []
        run = Nearest._run
        monkeypatch.setattr(Nearest, "_run", lambda *all_: ways.append(all_[2]) or run(*all_))
        nearest._short.clear()
        find(large, 100)
        keep(1000)
        for share in (100, 1, 1):
            find(large, share)
        assert ways == ["all", "index", "index", "documents", "documents"]


class TestWhatIsFound:
    @pytest.mark.parametrize("share", [1, 10, 100])
    def test_is_as_by_brute_force(self, large: Filled, share: int) -> None:
        keep(1000)
        hits = total = 0
        for i in range(0, 4000, 100):
            question = large.keys[i]
            found = search(large.readers[share], large.bank.id, PROFILE, question.tolist(), 10)
            right = large.nearest(question, share, 10)
            assert len(found) == len(right)
            hits += len({p.id for p in found} & set(right))
            total += len(right)
        assert hits >= 0.99 * total > 0

    def test_is_the_same_whatever_other_tenants_store(self, large: Filled, rows: Rows) -> None:
        keep(1000)
        before = [find(large, share) for share in (1, 10, 100)]
        rows.tenant("another", 4000)
        for _ in rows.others(4000):
            pass
        keep(1000)
        assert [find(large, share) for share in (1, 10, 100)] == before


class TestFilters:
    def test_a_field_that_there_is_not_is_named_with_those_that_there_are(
        self, company: Company
    ) -> None:
        alice = company.reader("alice")
        company.store("d", "text")
        work_off()
        with pytest.raises(UsageError, match=r"'team'.*known fields: 'of'"):
            self.found(company, alice, of_options(["team=hr"]))
        assert self.found(company, alice, of_options(["of=harbor"])) == 1
        assert self.found(company, alice, of_options(["of=other"])) == 0

    def test_fields_of_unreadable_documents_are_not_there(self, company: Company) -> None:
        alice = company.reader("alice")
        company.store("d", "text", ["group:hr"])
        work_off()
        with pytest.raises(UsageError, match="known fields: none"):
            self.found(company, alice, of_options(["of=harbor"]))

    @staticmethod
    def found(company: Company, asker: Asker, where: Filter | None) -> int:
        of = (asker, company.bank.id, OF_THE_TESTS)
        return len(search(*of, NORTH, 5, where=where))


class TestRelay:
    def test_makes_the_index_of_a_bank_that_has_grown_large(
        self, large: Filled, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from workers.maintenance import indexes_regularly

        monkeypatch.setenv("MEMBANK_HNSW_FROM", "1000")
        settings.cache_clear()
        stop = threading.Event()
        relay = threading.Thread(target=indexes_regularly, args=(stop,))
        relay.start()
        try:
            assert wait_until(lambda: names(superuser) == {name_of(large)}, 60)
        finally:
            stop.set()
            relay.join(60)
        assert not relay.is_alive()

    def test_leaves_it_to_others_where_it_does_not_know_the_owner(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from workers import maintenance

        def refused(*_: object) -> None:
            raise UsageError("no owner")

        monkeypatch.setattr(maintenance, "keep", refused)
        stop = threading.Event()
        waiting = threading.Thread(target=maintenance.indexes_regularly, args=(stop,))
        waiting.start()
        stop.set()
        waiting.join(10)
        assert not waiting.is_alive()
