"""A bank is encoded anew under another profile while the present one serves, then switched."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError, ProgrammingError
from typer.testing import CliRunner

from app import cli
from app.access.tenants import bank_now, find_bank
from app.bank import documents, jobs, outbox, profiles, status
from app.bank.reconcile import reconcile
from app.bank.search import load_blobs, search
from app.bank.session import Asker
from app.commands.stack import _change
from app.errors import ConflictError, ProfileError
from app.local.processes import wait_until
from app.memory.profile import Profile
from app.settings import settings
from tests.conftest import (
    NORTH,
    PROFILE,
    Company,
    administer,
    ask,
    change,
    encoded,
    split,
    work_off,
)

NEXT = "next-profile"
WORK = "SELECT document_id, chunk_id IS NULL, profile_id, priority FROM outbox ORDER BY 1, 2, 3"
# Chunks that nobody finds and nobody will encode under the bank's profile.
LOST = """
SELECT c.text FROM chunk c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
WHERE NOT EXISTS (SELECT FROM memory_blob m WHERE m.chunk_id = c.id
    AND m.profile_id = b.profile_id)
AND NOT EXISTS (SELECT FROM outbox o WHERE o.chunk_id = c.id AND o.profile_id = b.profile_id)
"""


@pytest.fixture
def whole(company: Company) -> Company:
    """Two documents with two chunks each, all encoded."""
    company.store("a", "one\n\ntwo")
    company.store("b", "three\n\nfour")
    work_off()
    return company


def begin(company: Company, profile: str = NEXT, spec: str = "{}") -> None:
    profiles.begin(company.tenant, company.bank.id, profile, spec)


def profile_of(company: Company) -> tuple[str, str | None]:
    bank = bank_now(company.tenant, company.bank.id)
    return bank.profile, bank.next_profile


def served(company: Company, profile: str | None = None) -> list[str]:
    """What is found and can be loaded, under the bank's profile of the moment."""
    profile = profile or profile_of(company)[0]
    asker = company.reader("alice")
    found = search(asker, company.bank.id, profile, NORTH, 100)
    blobs = load_blobs(asker, profile, [p.id for p in found])
    return sorted(p.text for p in found if blobs[p.id] == b"kv of " + p.text.encode())


def long_ago() -> None:
    administer("UPDATE bank SET switched_at = now() - interval '1 hour'")


def waits(connection: psycopg.Connection) -> Callable[[], bool]:
    """Whether some session waits for a lock."""
    blocked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return lambda: connection.execute(blocked).fetchone() == (True,)


class TestChange:
    def test_the_old_profile_serves_until_all_is_there_and_then_the_new_one_does(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        assert ask(Asker("admin"), WORK) == [
            *[("a", False, NEXT, -1)] * 2,
            *[("b", False, NEXT, -1)] * 2,
        ]
        first, *rest = outbox.claim(NEXT, 100, 60.0)
        assert outbox.claim(PROFILE, 100, 60.0) == []
        text = outbox.chunk_texts(first.tenant, [first])[first.chunk or 0].text
        outbox.finish_encoding(
            whole.tenant, NEXT, [encoded(first, payload=b"kv of " + text.encode())]
        )
        outbox.release(rest)
        assert profiles.switch() == []
        assert profile_of(whole) == (PROFILE, NEXT)
        assert served(whole) == ["four", "one", "three", "two"]
        assert work_off(profile=NEXT) == 3
        assert profiles.switch() == [(whole.tenant, whole.bank.id)]
        assert profile_of(whole) == (NEXT, None)
        assert served(whole) == ["four", "one", "three", "two"]
        assert profiles.switch() == []
        assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)

    def test_former_memories_stay_for_answers_under_way_and_are_then_removed(
        self, whole: Company, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(profiles, "_PAGE", 3)
        begin(whole)
        work_off(profile=NEXT)
        profiles.switch()
        assert reconcile().former_memories == 0
        assert served(whole, PROFILE) == ["four", "one", "three", "two"]
        long_ago()
        found = reconcile()
        assert (found.former_memories, found.any) == (4, False)
        assert superuser.execute("SELECT DISTINCT profile_id FROM memory_blob").fetchall() == [
            (NEXT,)
        ]
        assert served(whole) == ["four", "one", "three", "two"]

    def test_sql_begins_it_too(self, whole: Company) -> None:
        administer(
            "INSERT INTO encoder_profile (tenant_id, id, spec) VALUES (:t, :p, '{}')",
            t=whole.tenant,
            p=NEXT,
        )
        administer("UPDATE bank SET next_profile_id = :p", p=NEXT)
        assert work_off(profile=NEXT) == 4
        assert len(profiles.switch()) == 1

    def test_sql_may_switch_before_all_is_there(self, whole: Company) -> None:
        begin(whole)
        [first, *rest] = outbox.claim(NEXT, 100, 60.0)
        text = outbox.chunk_texts(first.tenant, [first])[first.chunk or 0].text
        memory = encoded(first, payload=b"kv of " + text.encode())
        outbox.finish_encoding(whole.tenant, NEXT, [memory])
        outbox.release(rest)
        administer("UPDATE bank SET profile_id = next_profile_id, next_profile_id = NULL")
        assert served(whole) == [text]
        assert work_off(profile=NEXT) == 3
        assert served(whole) == ["four", "one", "three", "two"]

    def test_the_relay_switches(self, whole: Company, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMBANK_REDIS_URL", "redis://127.0.0.1:1/0")
        settings.cache_clear()
        from workers import relay

        begin(whole)
        relay.switch()
        assert profile_of(whole) == (PROFILE, NEXT)
        work_off(profile=NEXT)
        relay.switch()
        assert profile_of(whole) == (NEXT, None)

    def test_a_bank_without_chunks_is_switched_at_once(self, company: Company) -> None:
        begin(company)
        assert len(profiles.switch()) == 1
        company.store("a", "one")
        assert work_off(profile=NEXT) == 1
        assert served(company) == ["one"]

    def test_the_way_back_is_short_while_the_former_memories_are_there(
        self, whole: Company
    ) -> None:
        begin(whole)
        work_off(profile=NEXT)
        profiles.switch()
        whole.store("c", "five")
        work_off(profile=NEXT)
        begin(whole, PROFILE)
        assert ask(Asker("admin"), WORK) == [("c", False, PROFILE, -1)]
        assert work_off() == 1
        assert len(profiles.switch()) == 1
        assert served(whole) == ["five", "four", "one", "three", "two"]

    def test_only_its_own_tenants_bank_is_changed(
        self, whole: Company, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("quay")
        other.store("a", "one")
        work_off()
        begin(whole)
        assert {row[0] for row in ask(Asker("admin"), "SELECT tenant_id FROM outbox")} == {
            whole.tenant
        }
        work_off(profile=NEXT)
        assert profiles.switch() == [(whole.tenant, whole.bank.id)]
        assert profile_of(other) == (PROFILE, None)
        assert served(other) == ["one"]

    def test_work_that_was_lost_is_queued_again_before_the_switch(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        superuser.execute("TRUNCATE outbox")
        assert profiles.switch() == []
        assert work_off(profile=NEXT) == 4
        assert len(profiles.switch()) == 1

    def test_a_reconciliation_queues_for_both_profiles(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        superuser.execute("DELETE FROM memory_key WHERE chunk_id = (SELECT min(id) FROM chunk)")
        superuser.execute("TRUNCATE outbox")
        assert reconcile().queued_chunks == 5
        assert reconcile().queued_chunks == 0
        assert (work_off(), work_off(profile=NEXT)) == (1, 4)
        assert len(profiles.switch()) == 1


class TestEdit:
    def test_an_edited_documents_chunks_wait_for_both(self, whole: Company) -> None:
        begin(whole)
        work_off(profile=NEXT)
        administer("UPDATE document SET text = E'one\\n\\nnew' WHERE id = 'a'")
        assert ask(Asker("admin"), WORK) == [("a", True, PROFILE, 1)]
        assert work_off(profile=NEXT) == 0, "the serving profile's worker splits"
        (to_split,) = outbox.claim(PROFILE, 100, 60.0)
        assert split(to_split)
        assert ask(Asker("admin"), WORK) == [("a", False, NEXT, 1), ("a", False, PROFILE, 1)]
        assert work_off() == 1
        assert served(whole) == ["four", "new", "one", "three"]
        assert profiles.switch() == [], "what is found now would be lost"
        assert work_off(profile=NEXT) == 1
        assert len(profiles.switch()) == 1
        assert served(whole) == ["four", "new", "one", "three"]

    def test_work_that_nobody_finds_yet_does_not_hold_up_the_switch_and_goes_on_after_it(
        self, whole: Company
    ) -> None:
        begin(whole)
        work_off(profile=NEXT)
        whole.store("c", "five\n\nsix")
        administer("UPDATE document SET text = 'new' WHERE id = 'a'")
        [late] = [w for w in outbox.claim(PROFILE, 100, 60.0) if w.chunk is None]
        assert len(profiles.switch()) == 1
        assert ask(Asker("admin"), WORK) == [
            ("a", True, NEXT, 1),
            ("c", False, NEXT, 0),
            ("c", False, NEXT, 0),
        ]
        assert not split(late), "it was handed over"
        assert work_off(profile=NEXT) == 3
        assert served(whole) == ["five", "four", "new", "six", "three"]

    def test_what_is_deleted_needs_no_memory(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        held = outbox.claim(NEXT, 1, 60.0)
        documents.forget(whole.tenant, "a")
        assert outbox.finish_encoding(whole.tenant, NEXT, [encoded(held[0])]) == 0
        assert work_off(profile=NEXT) == 2
        assert len(profiles.switch()) == 1
        assert served(whole) == ["four", "three"]
        receipt = documents.forget(whole.tenant, "b")
        assert (receipt.chunks, receipt.keys, receipt.blobs) == (2, 4, 4), "of both profiles"
        assert superuser.execute("SELECT count(*) FROM memory_key").fetchone() == (0,)

    def test_a_worker_of_the_former_profile_that_comes_late_writes_nothing(
        self, whole: Company
    ) -> None:
        begin(whole)
        work_off(profile=NEXT)
        whole.store("c", "five")
        [late] = outbox.claim(PROFILE, 100, 60.0)
        assert len(profiles.switch()) == 1
        assert outbox.finish_encoding(whole.tenant, PROFILE, [encoded(late)]) == 0
        assert work_off(profile=NEXT) == 1
        assert served(whole) == ["five", "four", "one", "three", "two"]


class TestCancel:
    def test_it_drops_the_work_and_then_the_memories(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        [held, poison] = outbox.claim(NEXT, 2, 60.0)
        outbox.fail(poison, "no way", max_attempts=1)
        profiles.drop(whole.tenant, whole.bank.id)
        assert profile_of(whole) == (PROFILE, None)
        assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        assert superuser.execute("SELECT count(*) FROM dead_letter").fetchone() == (0,)
        assert outbox.finish_encoding(whole.tenant, NEXT, [encoded(held)]) == 0
        whole.store("c", "five")
        assert {row[2] for row in ask(Asker("admin"), WORK)} == {PROFILE}
        assert profiles.switch() == []
        assert work_off() == 1
        assert served(whole) == ["five", "four", "one", "three", "two"]

    def test_begun_again_it_goes_on_with_what_is_there(self, whole: Company) -> None:
        begin(whole)
        work_off(profile=NEXT)
        profiles.drop(whole.tenant, whole.bank.id)
        begin(whole)
        assert ask(Asker("admin"), WORK) == []
        profiles.drop(whole.tenant, whole.bank.id)
        assert reconcile().former_memories == 4
        begin(whole)
        assert len(ask(Asker("admin"), WORK)) == 4

    def test_another_profile_takes_its_place(self, whole: Company) -> None:
        begin(whole)
        begin(whole, "third")
        assert {row[2] for row in ask(Asker("admin"), WORK)} == {"third"}
        work_off(profile="third")
        assert len(profiles.switch()) == 1
        assert profile_of(whole) == ("third", None)


class TestFailure:
    @pytest.fixture
    def failed(self, whole: Company) -> Company:
        begin(whole)
        [poison] = outbox.claim(NEXT, 1, 60.0)
        outbox.fail(poison, "no way", max_attempts=1)
        work_off(profile=NEXT)
        return whole

    def test_it_holds_up_the_switch_and_the_status_says_so(self, failed: Company) -> None:
        assert profiles.switch() == []
        assert reconcile().queued_chunks == 0
        assert served(failed) == ["four", "one", "three", "two"]
        [row] = status.banks()
        assert (row["failed"], row["failed_next"], row["memories_next"]) == (0, 1, 3)
        assert "3 of 4 chunks, 1 failed and hold up the switch (membank jobs)" in _change(row)
        assert ask(Asker("admin"), "SELECT DISTINCT status, coverage FROM document_status") == [
            ("ready", 1.0)
        ]
        assert status.progress(failed.tenant, failed.bank.id, ["a", "b"]) == {
            "chunks": 4,
            "memories": 4,
            "pending": 0,
            "failed": 0,
        }
        assert status.failures(failed.tenant, failed.bank.id, ["a", "b"]) == []
        [job], _ = jobs.find(10)
        assert (job["state"], job["profile_id"]) == ("failed", NEXT)

    def test_tried_again_and_done_it_no_longer_does(self, failed: Company) -> None:
        assert jobs.retry(failed.tenant) == 1
        assert profiles.switch() == []
        assert work_off(profile=NEXT) == 1
        assert len(profiles.switch()) == 1

    def test_discarded_it_no_longer_does_and_that_chunk_is_not_found(self, failed: Company) -> None:
        assert jobs.discard(failed.tenant) == 1
        assert len(profiles.switch()) == 1
        assert len(served(failed)) == 3
        assert {row[0] for row in ask(Asker("admin"), "SELECT status FROM document_status")} == {
            "ready",
            "failed",
        }

    def test_a_failure_under_the_serving_profile_is_tried_under_the_next(
        self, company: Company
    ) -> None:
        company.store("a", "one\n\ntwo")
        [poison] = outbox.claim(PROFILE, 1, 60.0)
        outbox.fail(poison, "no way", max_attempts=1)
        work_off()
        begin(company)
        assert work_off(profile=NEXT) == 2
        assert len(profiles.switch()) == 1
        assert served(company) == ["one", "two"]
        assert ask(Asker("admin"), "SELECT count(*) FROM dead_letter") == [(0,)]

    def test_cancelled_jobs_are_kept_for_their_profile(self, whole: Company) -> None:
        begin(whole)
        whole.store("c", "five")
        assert jobs.cancel(whole.tenant) == 6
        assert jobs.retry(whole.tenant) == 6
        assert (work_off(), work_off(profile=NEXT)) == (1, 5)


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
        assert len(profiles.switch()) == 1
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
        assert profiles.switch() == []
        other.commit()
        assert superuser.execute(LOST).fetchall() == []
        assert work_off() == 1
        assert profiles.switch() == []
        assert work_off(profile=NEXT) == 1
        assert len(profiles.switch()) == 1
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
            switched = pool.submit(profiles.switch)
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
        assert profiles.switch() == []
        assert work_off(profile=NEXT) == 2, "what was passed by is queued now"
        assert len(profiles.switch()) == 1

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
            profiles.switch()

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
            profiles.switch()
        assert ask(Asker("admin"), "SELECT DISTINCT status, coverage FROM document_status") == [
            ("ready", 1.0)
        ]


class TestRefusals:
    def test_the_profile_that_it_has_already(self, whole: Company) -> None:
        with pytest.raises(ConflictError, match=f"encoded under profile {PROFILE} already"):
            begin(whole, PROFILE)

    @pytest.mark.parametrize("role", ["admin", "worker"])
    def test_a_profile_that_it_has_no_memories_of(self, whole: Company, role: str) -> None:
        begin(whole, "third")
        profiles.drop(whole.tenant, whole.bank.id)
        with pytest.raises(IntegrityError, match=f"has memories of profile {PROFILE} only"):
            change(Asker(role, whole.tenant), "UPDATE bank SET profile_id = 'third'")  # type: ignore[arg-type]

    def test_a_context_that_its_chunks_do_not_keep(self, whole: Company) -> None:
        with pytest.raises(ConflictError, match=r"keeps 0 tokens .* needs 40.*Make a new bank"):
            begin(whole, NEXT, '{"context": "40 tokens before it"}')
        assert profile_of(whole) == (PROFILE, None)

    def test_a_smaller_context_is_taken(self, whole: Company) -> None:
        administer('UPDATE encoder_profile SET spec = \'{"context": "40 tokens before it"}\'')
        begin(whole, NEXT, '{"context": "9 tokens before it"}')

    def test_an_unknown_profile(self, whole: Company) -> None:
        with pytest.raises(IntegrityError, match="next_profile_id"):
            administer("UPDATE bank SET next_profile_id = 'nobody knows it'")

    @pytest.mark.parametrize(
        ("role", "statement"),
        [
            ("app", "UPDATE bank SET next_profile_id = NULL"),
            ("app", "SELECT bank_switch(1, 1)"),
            ("app", "SELECT * FROM changing_banks()"),
            ("worker", "UPDATE bank SET name = 'mine'"),
        ],
    )
    def test_who_has_no_right_to_it(self, whole: Company, role: str, statement: str) -> None:
        with pytest.raises(ProgrammingError, match="permission denied"):
            change(Asker(role, whole.tenant), statement)  # type: ignore[arg-type]

    def test_a_worker_changes_no_other_tenants_bank(
        self, whole: Company, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("quay")
        begin(whole)
        as_worker = Asker("worker", other.tenant)
        assert change(as_worker, "UPDATE bank SET next_profile_id = NULL") == 1
        assert ask(as_worker, f"SELECT bank_switch({whole.tenant}, {whole.bank.id})") == [(False,)]
        assert profile_of(whole) == (PROFILE, NEXT)


OURS = Profile(model="m" * 64, embedder="e" * 64, prefix="Facts:", codec="rotated4")


class TestCommand:
    @pytest.fixture
    def settings_of(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Profile], None]:
        return lambda profile: monkeypatch.setattr("app.runtime.profile", lambda: profile)

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["bank", "reencode", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    def test_it_begins_and_drops_a_change_to_the_profile_of_the_settings(
        self, whole: Company, settings_of: Callable[[Profile], None]
    ) -> None:
        settings_of(OURS)
        arguments = ("handbook", "--tenant", "harbor", "--json")
        assert json.loads(self.run(*arguments)) == {
            "bank": "handbook",
            "profile": PROFILE,
            "next_profile": OURS.id,
        }
        assert profile_of(whole) == (PROFILE, OURS.id)
        [row] = status.banks()
        assert row["next_profile_id"] == OURS.id
        told = _change(row)
        assert told.startswith(f"from profile {PROFILE[:12]} to {OURS.id[:12]}: 0 of 4 chunks, 4 ")
        assert "MEMBANK_CODEC: None -> rotated4" in told
        listed = CliRunner().invoke(cli.app, ["jobs", "list"]).stdout
        assert listed.count(f"profile {OURS.id[:12]}") == 4
        assert json.loads(self.run(*arguments, "--cancel"))["next_profile"] is None
        assert profile_of(whole) == (PROFILE, None)
        with pytest.raises(ConflictError, match="nothing to cancel"):
            self.run(*arguments, "--cancel")

    def test_readers_of_the_same_models_may_differ_in_the_rest(
        self, whole: Company, settings_of: Callable[[Profile], None]
    ) -> None:
        from app.runtime import codec_of, require_splitting

        begin(whole, OURS.id, OURS.json())
        work_off(profile=OURS.id)
        profiles.switch()
        bank = find_bank("harbor", "handbook")
        assert bank.spec == asdict(OURS)
        settings_of(replace(OURS, codec="int8", selection="match", context="9 tokens before it"))
        assert codec_of(bank).name == "rotated4"
        with pytest.raises(ProfileError, match="another context: set MEMBANK_CONTEXT as"):
            require_splitting(bank)
        settings_of(replace(OURS, codec="int8"))
        require_splitting(bank)
        settings_of(replace(OURS, model="x" * 64, embedder="y" * 64))
        begin(whole, "third")
        says = (
            f"bank 'handbook' is encoded under profile {OURS.id} since .* anew under third;"
            ".*another model, embedder: set MEMBANK_MODEL and MEMBANK_EMBEDDER"
        )
        with pytest.raises(ProfileError, match=says):
            codec_of(find_bank("harbor", "handbook"))


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
