"""Leases on work: who holds what, for how long, and what a worker that comes late may do."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from app.db.session import Asker
from app.queue import outbox
from app.queue.encoding import finish_encoding
from app.queue.outbox import Work
from tests import edges
from tests.conftest import (
    PROFILE,
    Company,
    administer,
    ask,
    encoded,
    pieces_of,
    split,
    work_off,
)

COUNTS = (
    "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM memory_key),"
    " (SELECT count(*) FROM memory_blob), (SELECT count(*) FROM dead_letter)"
)


def counts(superuser: psycopg.Connection) -> tuple[int, int, int, int]:
    """Rows of outbox, memory_key, memory_blob, dead_letter."""
    row = superuser.execute(COUNTS).fetchone()
    assert row is not None
    return row[0], row[1], row[2], row[3]


def numbers(work: list[Work]) -> set[tuple[int, int]]:
    return {(one.tenant, one.id) for one in work}


def body(chunks: int) -> str:
    return "\n\n".join(f"paragraph {i}" for i in range(chunks))


def claim(count: int = 100, seconds: float = 60.0) -> list[Work]:
    return outbox.claim(PROFILE, count, seconds)


class TestClaim:
    def test_what_one_holds_another_does_not_get(self, company: Company) -> None:
        company.store("d", body(10))
        first, second = claim(4), claim(100)
        assert len(first) == 4
        assert len(second) == 6
        assert not numbers(first) & numbers(second)
        assert claim() == []

    def test_rows_that_another_transaction_holds_are_passed_over_without_waiting(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(10))
        with superuser.transaction():
            held = superuser.execute("SELECT id FROM outbox ORDER BY id LIMIT 4 FOR UPDATE")
            locked = {(company.tenant, row[0]) for row in held}
            got = numbers(claim())
        assert len(got) == 6
        assert not got & locked

    def test_four_claimers_at_once_get_each_row_once(self, company: Company) -> None:
        company.store("d", body(40))
        start = threading.Barrier(4)

        def take() -> list[Work]:
            start.wait(timeout=10)
            return [one for _ in range(20) for one in claim(2)]

        with ThreadPoolExecutor(4) as pool:
            taken = [one for f in [pool.submit(take) for _ in range(4)] for one in f.result()]
        assert len(taken) == len(numbers(taken)) == 40

    def test_a_small_tenant_is_in_the_first_claim_beside_a_large_one(
        self, new_company: Callable[[str], Company]
    ) -> None:
        large, small = new_company("large"), new_company("small")
        large.store("d", body(500))
        small.store("d", body(2))
        first = claim(16)
        by_tenant = {t: sum(w.tenant == t for w in first) for t in (large.tenant, small.tenant)}
        assert by_tenant == {large.tenant: 8, small.tenant: 2}

    def test_with_more_tenants_than_rows_asked_for_each_claim_serves_others(
        self, new_company: Callable[[str], Company]
    ) -> None:
        companies = [new_company(f"tenant {i}") for i in range(5)]
        for company in companies:
            company.store("d", body(1))
        served = [one.tenant for _ in range(3) for one in claim(2)]
        assert sorted(served) == sorted(company.tenant for company in companies)

    def test_a_document_is_split_before_chunks_are_encoded(self, company: Company) -> None:
        company.store("a", body(3))
        company.store("b", body(1))
        administer("UPDATE document SET text = 'edit' WHERE id = 'b'")
        assert [w.chunk for w in claim(1)] == [None]

    def test_work_of_another_profile_is_not_claimed(self, company: Company) -> None:
        company.store("d", body(3))
        assert outbox.claim("another", 100, 60.0) == []
        assert outbox.waiting_profiles() == [PROFILE]
        claim()
        assert outbox.waiting_profiles() == []

    def test_work_says_which_attempt_it_is(self, company: Company) -> None:
        company.store("d", body(1))
        assert [claim(1, seconds=0.0)[0].attempts for _ in range(3)] == [1, 2, 3]


class TestPriority:
    def test_an_edit_goes_before_a_bulk_load(self, company: Company) -> None:
        company.store("old", "one\n\ntwo")
        company.store("also old", "one")
        work_off()
        company.store("bulk", body(50))
        administer("UPDATE document SET text = 'edit' WHERE id = 'old'")
        company.store("also old", "another")
        first = {w.document: w for w in claim(2)}  # rows come back in any order
        assert {name: w.chunk is None for name, w in first.items()} == {
            "old": True,
            "also old": False,
        }
        assert split(first["old"])
        assert {w.document for w in claim(1)} == {"old"}, "its chunks too"
        assert {w.document for w in claim(10)} == {"bulk"}

    def test_a_new_document_waits_in_line_however_it_came(self, company: Company) -> None:
        company.store("bulk", body(5))
        administer(
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
            " VALUES (:tenant, :bank, 'new', 's', 't', 'one', '')",
            tenant=company.tenant,
            bank=company.bank.id,
        )
        assert split(claim(1)[0])
        assert ask(Asker("admin"), "SELECT DISTINCT priority FROM outbox") == [(0,)]

    def test_edits_of_a_large_tenant_do_not_hold_up_another_ones_first_document(
        self, new_company: Callable[[str], Company]
    ) -> None:
        large, small = new_company("large"), new_company("small")
        large.store("d", body(3))
        large.store("d", body(50_000))
        small.store("d", "one")
        served = {one.tenant for _ in range(2) for one in claim(64)}
        assert served == {large.tenant, small.tenant}

    def test_the_index_gives_each_tenants_rows_in_the_order_of_the_claim(
        self, new_company: Callable[[str], Company], superuser: psycopg.Connection
    ) -> None:
        for i in range(3):
            new_company(f"tenant {i}").store("d", body(2000))
        superuser.execute("ANALYZE outbox")
        plan = "\n".join(
            row[0]
            for row in ask(
                Asker("worker"),
                f"EXPLAIN {outbox._CLAIM.text}",
                profile=PROFILE,
                count=64,
                seconds=60.0,
                token=str(uuid.uuid4()),
            )
        )
        assert "using outbox_due" in plan
        assert "Seq Scan on outbox" not in plan
        sorts = [line for line in plan.splitlines() if "Sort Key" in line]
        assert all("random()" in line for line in sorts), plan


class TestLease:
    def test_an_expired_lease_is_free_and_the_late_worker_writes_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(1))
        [late] = claim(seconds=0.0)
        [owner] = claim()
        assert (owner.id, owner.attempts) == (late.id, 2)
        assert finish_encoding(company.tenant, PROFILE, [encoded(late)]) == 0
        assert counts(superuser) == (1, 0, 0, 0)
        assert finish_encoding(company.tenant, PROFILE, [encoded(owner)]) == 1
        assert counts(superuser) == (0, 1, 1, 0)
        assert finish_encoding(company.tenant, PROFILE, [encoded(late)]) == 0
        assert counts(superuser) == (0, 1, 1, 0)

    def test_a_late_worker_neither_fails_nor_buries_what_another_holds(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(1))
        [late] = claim(seconds=0.0)
        [owner] = claim()
        assert not outbox.fail(late, "late", max_attempts=9)
        assert not outbox.fail(late, "late", max_attempts=1)
        outbox.release([late])
        outbox.renew([late], 1e6)
        row = superuser.execute(
            "SELECT lease_token, attempts, last_error, lease_until < now() + '1 hour' FROM outbox"
        ).fetchone()
        assert row == (owner.token, 2, None, True)

    def test_renewed_work_stays_with_who_holds_it(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(2))
        held = claim(seconds=0.0)
        outbox.renew(held, 60.0)
        assert claim() == []
        row = superuser.execute(
            "SELECT min(lease_until) > now() + '50 s', max(lease_until) < now() + '61 s'"
            " FROM outbox"
        ).fetchone()
        assert row == (True, True)
        done = [encoded(one) for one in held]
        assert finish_encoding(company.tenant, PROFILE, done) == 2

    def test_released_work_is_free_at_once_and_no_attempt_is_counted(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(3))
        for _ in range(3):
            work = claim()
            assert [one.attempts for one in work] == [1, 1, 1]
            outbox.release(work)
        assert superuser.execute("SELECT DISTINCT attempts FROM outbox").fetchall() == [(0,)]


class TestFailure:
    def test_failed_work_comes_back_after_a_delay_that_doubles(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(1))
        for attempt in (1, 2, 3):
            [work] = claim()
            assert work.attempts == attempt
            before = superuser.execute("SELECT clock_timestamp()").fetchone()
            assert not outbox.fail(work, f"error {attempt}", max_attempts=4)
            row = superuser.execute(
                "SELECT extract(epoch FROM not_before - %s)::float, lease_token, last_error"
                " FROM outbox",
                before,
            ).fetchone()
            assert row is not None
            delay = 0.5 * 2**attempt
            assert delay * 0.5 <= row[0] <= delay * 1.5 + 1
            assert row[1:] == (None, f"error {attempt}")
            assert claim() == []
            administer("UPDATE outbox SET not_before = now()")

    def test_work_that_fails_on_its_last_attempt_is_buried_with_its_error(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(2))
        [poison] = claim(1)
        assert outbox.fail(poison, "ModelError: it's 100% broken", max_attempts=1)
        assert counts(superuser) == (1, 0, 0, 1)
        found = superuser.execute("SELECT document_id, chunk_id, attempts, error FROM dead_letter")
        assert found.fetchall() == [("d", poison.chunk, 1, "ModelError: it's 100% broken")]
        assert superuser.execute("SELECT status FROM document_status").fetchone() == ("failed",)
        assert work_off() == 1, "the other chunk is not held up"

    def test_an_error_that_quotes_what_postgres_cannot_hold_is_kept_all_the_same(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(1))
        [work] = claim()
        assert not outbox.fail(work, "bad \x00 byte", max_attempts=9)
        administer("UPDATE outbox SET not_before = now()")
        [work] = claim()
        assert outbox.fail(work, "bad \x00 \ud800", max_attempts=1, traceback="at \x00")
        found = superuser.execute("SELECT error, traceback FROM dead_letter").fetchone()
        assert found == ("bad \ufffd ?", "at \ufffd")

    def test_failing_what_is_gone_raises_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(1))
        [work] = claim()
        edges.forget(company.tenant, "d")
        assert not outbox.fail(work, "gone", max_attempts=1)
        assert counts(superuser) == (0, 0, 0, 0)


class TestObsolete:
    def test_finishing_a_deleted_document_writes_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", body(3))
        work = claim()
        administer("DELETE FROM document")
        done = [encoded(one) for one in work]
        assert finish_encoding(company.tenant, PROFILE, done) == 0
        assert counts(superuser) == (0, 0, 0, 0)

    def test_finishing_after_an_edit_writes_only_chunks_that_are_still_there(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "stays\n\ngoes")
        work = claim()
        administer("UPDATE document SET text = E'stays\\n\\nis new'")
        [to_split] = claim()
        assert split(to_split)
        done = [encoded(one) for one in work]
        assert finish_encoding(company.tenant, PROFILE, done) == 1
        found = superuser.execute("SELECT text FROM chunk JOIN memory_key ON chunk_id = chunk.id")
        assert found.fetchall() == [("stays",)]
        assert work_off() == 1
        assert counts(superuser) == (0, 2, 2, 0)

    def test_a_split_of_a_text_that_was_edited_meanwhile_changes_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("d", "one")
        work_off()
        administer("UPDATE document SET text = 'two'")
        [late] = claim()
        administer("UPDATE document SET text = 'three'")
        assert not split(late)
        assert superuser.execute("SELECT text FROM chunk").fetchall() == [("one",)]
        assert work_off() == 1
        assert superuser.execute("SELECT text FROM chunk").fetchall() == [("three",)]

    def test_a_document_renamed_while_it_is_encoded_is_finished_under_its_new_name(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("old", body(1))
        [work] = claim(seconds=0.0)
        administer("UPDATE document SET id = 'new'")
        with pytest.raises(Exception, match="memory_key"):
            finish_encoding(company.tenant, PROFILE, [encoded(work)])
        assert counts(superuser) == (1, 0, 0, 0)
        assert work_off() == 1
        assert superuser.execute("SELECT document_id FROM memory_key").fetchall() == [("new",)]


class TestTogether:
    def test_four_workers_give_each_of_200_chunks_one_key_and_one_blob(
        self, new_company: Callable[[str], Company], superuser: psycopg.Connection
    ) -> None:
        first, second = new_company("first"), new_company("second")
        for i in range(15):
            first.store(f"d{i}", body(10))
        for i in range(5):
            second.store(f"d{i}", body(10))

        def drain() -> int:
            written = 0
            while work := claim(7):
                for tenant in {one.tenant for one in work}:
                    done = [encoded(one) for one in work if one.tenant == tenant]
                    written += finish_encoding(tenant, PROFILE, done)
            return written

        with ThreadPoolExecutor(4) as pool:
            written = [f.result() for f in [pool.submit(drain) for _ in range(4)]]
        assert sum(written) == 200
        assert counts(superuser) == (0, 200, 200, 0)
        distinct = superuser.execute(
            "SELECT count(DISTINCT (tenant_id, chunk_id)) FROM memory_blob"
        ).fetchone()
        assert distinct == (200,)

    def test_documents_deleted_while_their_memories_are_written_block_nobody(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        """Writing, splitting, editing and deleting at once end without a deadlock."""
        over = threading.Event()

        def drain() -> None:
            while not over.is_set():
                work_off()

        with ThreadPoolExecutor(2) as pool:
            workers = [pool.submit(drain) for _ in range(2)]
            try:
                for i in range(40):
                    company.store("d", body(10))
                    administer("UPDATE document SET text = :body", body=f"{body(9)}\n\n{i}")
                    if i % 2:
                        administer("DELETE FROM document")
            finally:
                over.set()
            for worker in workers:
                worker.result()
        work_off()
        assert counts(superuser)[0] == 0


def test_pieces_of_the_tests_are_distinct() -> None:
    assert len({piece.hash for piece in pieces_of(body(500))}) == 500
