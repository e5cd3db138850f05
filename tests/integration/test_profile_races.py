"""The change of a bank's profile beside what others do at that moment."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from app.db.session import Asker
from app.local.processes import wait_until
from app.queue import outbox
from app.search.search import search
from app.store.blobs import load_blobs
from app.upkeep.reconcile import reconcile
from tests import edges
from tests.conftest import (
    NORTH,
    PROFILE,
    Company,
    administer,
    ask,
    split,
    work_off,
)
from tests.profiles import NEXT, WORK, begin, filled, profile_of, served

# Chunks that nobody finds and nobody will encode under the bank's profile.
LOST = """
SELECT c.text FROM chunk c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
WHERE NOT EXISTS (SELECT FROM memory_blob m WHERE m.chunk_id = c.id
    AND m.profile_id = b.profile_id)
AND NOT EXISTS (SELECT FROM outbox o WHERE o.chunk_id = c.id AND o.profile_id = b.profile_id)
"""


@pytest.fixture
def whole(company: Company) -> Company:
    return filled(company)


def waits(connection: psycopg.Connection) -> Callable[[], bool]:
    """Whether some session waits for a lock."""
    blocked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return lambda: connection.execute(blocked).fetchone() == (True,)


class TestTwoConnections:
    """Each of two transactions sees a whole bank, and nothing falls between them."""

    @pytest.fixture
    def ready(self, whole: Company) -> Company:
        begin(whole)
        work_off(profile=NEXT)
        return whole

    @pytest.fixture
    def other(self, database: str) -> Iterator[psycopg.Connection]:
        with psycopg.connect(database) as connection:
            yield connection

    def switch_in(self, connection: psycopg.Connection, company: Company) -> bool:
        row = connection.execute(
            "SELECT bank_switch(%s, %s)", [company.tenant, company.bank.id]
        ).fetchone()
        assert row is not None
        return bool(row[0])

    def test_before_the_commit_the_old_memories_are_served_and_after_it_the_new_ones(
        self, ready: Company, other: psycopg.Connection
    ) -> None:
        assert self.switch_in(other, ready)
        assert profile_of(ready) == (PROFILE, NEXT)
        assert served(ready) == ["four", "one", "three", "two"]
        other.commit()
        assert profile_of(ready) == (NEXT, None)
        assert served(ready) == ["four", "one", "three", "two"]

    def test_a_question_that_found_memories_before_the_switch_loads_them_after_it(
        self, ready: Company
    ) -> None:
        asker = ready.reader("alice")
        found = [p.id for p in search(asker, ready.bank.id, PROFILE, NORTH, 100)]
        assert len(edges.switch()) == 1
        reconcile()
        assert len(load_blobs(asker, PROFILE, found)) == 4

    def test_chunks_that_come_during_the_switch_wait_for_the_new_profile(
        self, ready: Company, other: psycopg.Connection, superuser: psycopg.Connection
    ) -> None:
        administer("UPDATE document SET text = E'one\\n\\nnew' WHERE id = 'a'")
        (to_split,) = outbox.claim(PROFILE, 1, 60.0)
        with superuser.transaction():  # as its worker does that renews the lease
            superuser.execute("SELECT FROM outbox FOR UPDATE")
            assert self.switch_in(other, ready)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(split, to_split)
            assert wait_until(waits(superuser), 30)
            other.commit()
            assert done.result(timeout=30), "the switch passed it by"
        assert superuser.execute(LOST).fetchall() == []
        assert ask(Asker("admin"), WORK) == [("a", False, NEXT, 1)]
        assert work_off(profile=NEXT) == 1
        assert served(ready) == ["four", "new", "one", "three"]

    def test_the_switch_waits_for_a_split_that_has_begun_and_passes_it_by_in_the_end(
        self, ready: Company, other: psycopg.Connection, superuser: psycopg.Connection
    ) -> None:
        """Whoever switched beside it would not see its chunks, nor they the new profile."""
        other.execute(
            "INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading, start_at,"
            " end_at, hash) VALUES (%s, %s, 'a', 2, 'late', '', 0, 4, 'h')",
            [ready.tenant, ready.bank.id],
        )
        assert edges.switch() == []
        other.commit()
        assert superuser.execute(LOST).fetchall() == []
        assert work_off() == 1
        assert edges.switch() == []
        assert work_off(profile=NEXT) == 1
        assert len(edges.switch()) == 1
        assert superuser.execute(LOST).fetchall() == []

    def test_what_the_switch_did_not_see_before_it_held_the_bank_it_sees_then(
        self, ready: Company, other: psycopg.Connection, superuser: psycopg.Connection
    ) -> None:
        other.execute(
            "WITH c AS (INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading,"
            " start_at, end_at, hash) VALUES (%s, %s, 'a', 2, 'late', '', 0, 4, 'h') RETURNING *)"
            " INSERT INTO memory_key"
            " (tenant_id, chunk_id, profile_id, bank_id, document_id, embedding)"
            " SELECT tenant_id, id, %s, bank_id, document_id, '[1,0,0]' FROM c",
            [ready.tenant, ready.bank.id, PROFILE],
        )
        with ThreadPoolExecutor(1) as pool:
            switched = pool.submit(edges.switch)
            assert wait_until(waits(superuser), 30)
            other.commit()
            assert switched.result(timeout=30) == []

    def test_a_change_that_begins_during_a_split_queues_the_chunks_of_it_too(
        self, whole: Company, other: psycopg.Connection, superuser: psycopg.Connection
    ) -> None:
        other.execute(
            "INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading, start_at,"
            " end_at, hash) VALUES (%s, %s, 'a', 2, 'late', '', 0, 4, 'h')",
            [whole.tenant, whole.bank.id],
        )
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(begin, whole)
            assert wait_until(waits(superuser), 30)
            other.commit()
            begun.result(timeout=30)
        assert len(outbox.claim(NEXT, 100, 60.0)) == 5

    def test_a_document_that_someone_deletes_holds_up_neither_begin_nor_switch(
        self, whole: Company, other: psycopg.Connection
    ) -> None:
        other.execute("DELETE FROM document WHERE id = 'a'")
        begin(whole)
        assert {row[0] for row in ask(Asker("admin"), WORK)} == {"b"}
        # What that transaction does next needs the bank, which no one holds for it to wait on.
        other.execute(
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text)"
            " VALUES (%s, %s, 'new', '', '', 'x')",
            [whole.tenant, whole.bank.id],
        )
        other.rollback()
        assert work_off(profile=NEXT) == 2
        assert edges.switch() == []
        assert work_off(profile=NEXT) == 2, "what was passed by is queued now"
        assert len(edges.switch()) == 1

    def test_a_document_edited_by_someone_while_it_is_switched_is_split_by_the_new_profile(
        self, ready: Company, other: psycopg.Connection, superuser: psycopg.Connection
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            assert self.switch_in(other, ready)
            edited = pool.submit(
                administer, "UPDATE document SET text = E'one\\n\\nnew' WHERE id = 'a'"
            )
            assert wait_until(waits(superuser), 30)
            other.commit()
            edited.result(timeout=30)
        assert ask(Asker("admin"), WORK) == [("a", True, NEXT, 1)]

    def test_changes_beside_edits_deletions_and_workers_of_both_block_nobody_and_lose_nothing(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        over = threading.Event()
        turns = {PROFILE: NEXT, NEXT: PROFILE}

        def repeat(step: Callable[[], object]) -> int:
            count = 0
            while not over.is_set():
                step()
                count += 1
            return count

        def turn() -> None:
            serving, following = profile_of(whole)
            if following is None:
                begin(whole, turns[serving])
            edges.switch()

        steps: list[Callable[[], object]] = [
            turn,
            reconcile,
            work_off,
            lambda: work_off(profile=NEXT),
        ]
        with ThreadPoolExecutor(len(steps)) as pool:
            others = [pool.submit(repeat, step) for step in steps]
            try:
                for i in range(40):
                    whole.store("d", f"one\n\ntwo\n\n{i}")
                    administer("UPDATE document SET text = text || '!'")
                    if i % 4 == 0:
                        administer("DELETE FROM document WHERE id = 'd'")
            finally:
                over.set()
            for one in others:
                one.result(timeout=60)
        assert superuser.execute("SELECT switched_at IS NOT NULL FROM bank").fetchone() == (True,)
        assert superuser.execute(LOST).fetchall() == []
        for _ in range(3):
            work_off()
            work_off(profile=NEXT)
            edges.switch()
        assert ask(Asker("admin"), "SELECT DISTINCT status, coverage FROM document_status") == [
            ("ready", 1.0)
        ]


def test_the_plans_of_the_relay_and_the_claim_read_no_whole_table(
    whole: Company, superuser: psycopg.Connection
) -> None:
    for i in range(5):
        whole.store(f"d{i}", "\n\n".join(f"{i} {n}" for n in range(1000)))
    begin(whole)
    superuser.execute("ANALYZE outbox")
    plan = "\n".join(
        row[0] for row in ask(Asker("worker"), f"EXPLAIN {outbox._PROFILES.text}", profile=None)
    )
    assert "Seq Scan on outbox" not in plan
    assert plan.count("outbox_due") == 3, plan
    assert sorted(outbox.waiting_profiles()) == sorted([PROFILE, NEXT])
    assert {w.profile for w in outbox.claim(NEXT, 10, 60.0)} == {NEXT}
