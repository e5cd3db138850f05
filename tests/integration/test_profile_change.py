"""A bank is encoded anew under another profile while the present one serves, then switched."""

from collections.abc import Callable

import psycopg
import pytest

from app.bank import profiles
from app.commands.stack import _change
from app.db.session import Asker
from app.queue import outbox
from app.queue.encoding import chunk_texts, finish_encoding
from app.settings import settings
from app.upkeep.reconcile import reconcile
from tests import edges
from tests.conftest import (
    PROFILE,
    Company,
    administer,
    ask,
    encoded,
    split,
    work_off,
)
from tests.profiles import NEXT, WORK, begin, filled, profile_of, served


@pytest.fixture
def whole(company: Company) -> Company:
    return filled(company)


def long_ago() -> None:
    administer("UPDATE bank SET switched_at = now() - interval '1 hour'")


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
        text = chunk_texts(first.tenant, [first])[first.chunk or 0]
        finish_encoding(whole.tenant, NEXT, [encoded(first, payload=b"kv of " + text.encode())])
        outbox.release(rest)
        assert edges.switch() == []
        assert profile_of(whole) == (PROFILE, NEXT)
        assert served(whole) == ["four", "one", "three", "two"]
        assert work_off(profile=NEXT) == 3
        assert edges.switch() == [(whole.tenant, whole.bank.id)]
        assert profile_of(whole) == (NEXT, None)
        assert served(whole) == ["four", "one", "three", "two"]
        assert edges.switch() == []
        assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)

    def test_former_memories_stay_for_answers_under_way_and_are_then_removed(
        self, whole: Company, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(profiles, "_PAGE", 3)
        begin(whole)
        work_off(profile=NEXT)
        edges.switch()
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
        assert len(edges.switch()) == 1

    def test_sql_may_switch_before_all_is_there(self, whole: Company) -> None:
        begin(whole)
        [first, *rest] = outbox.claim(NEXT, 100, 60.0)
        text = chunk_texts(first.tenant, [first])[first.chunk or 0]
        memory = encoded(first, payload=b"kv of " + text.encode())
        finish_encoding(whole.tenant, NEXT, [memory])
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
        assert len(edges.switch()) == 1
        company.store("a", "one")
        assert work_off(profile=NEXT) == 1
        assert served(company) == ["one"]

    def test_the_way_back_is_short_while_the_former_memories_are_there(
        self, whole: Company
    ) -> None:
        begin(whole)
        work_off(profile=NEXT)
        edges.switch()
        whole.store("c", "five")
        work_off(profile=NEXT)
        begin(whole, PROFILE)
        assert ask(Asker("admin"), WORK) == [("c", False, PROFILE, -1)]
        assert work_off() == 1
        assert len(edges.switch()) == 1
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
        assert edges.switch() == [(whole.tenant, whole.bank.id)]
        assert profile_of(other) == (PROFILE, None)
        assert served(other) == ["one"]

    def test_work_that_was_lost_is_queued_again_before_the_switch(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        superuser.execute("TRUNCATE outbox")
        assert edges.switch() == []
        assert work_off(profile=NEXT) == 4
        assert len(edges.switch()) == 1

    def test_a_reconciliation_queues_for_both_profiles(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        superuser.execute("DELETE FROM memory_key WHERE chunk_id = (SELECT min(id) FROM chunk)")
        superuser.execute("TRUNCATE outbox")
        assert reconcile().queued_chunks == 5
        assert reconcile().queued_chunks == 0
        assert (work_off(), work_off(profile=NEXT)) == (1, 4)
        assert len(edges.switch()) == 1


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
        assert edges.switch() == [], "what is found now would be lost"
        assert work_off(profile=NEXT) == 1
        assert len(edges.switch()) == 1
        assert served(whole) == ["four", "new", "one", "three"]

    def test_work_that_nobody_finds_yet_does_not_hold_up_the_switch_and_goes_on_after_it(
        self, whole: Company
    ) -> None:
        begin(whole)
        work_off(profile=NEXT)
        whole.store("c", "five\n\nsix")
        administer("UPDATE document SET text = 'new' WHERE id = 'a'")
        [late] = [w for w in outbox.claim(PROFILE, 100, 60.0) if w.chunk is None]
        assert len(edges.switch()) == 1
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
        edges.forget(whole.tenant, "a")
        assert finish_encoding(whole.tenant, NEXT, [encoded(held[0])]) == 0
        assert work_off(profile=NEXT) == 2
        assert len(edges.switch()) == 1
        assert served(whole) == ["four", "three"]
        receipt = edges.forget(whole.tenant, "b")
        assert (receipt.chunks, receipt.keys, receipt.blobs) == (2, 4, 4), "of both profiles"
        assert superuser.execute("SELECT count(*) FROM memory_key").fetchone() == (0,)

    def test_a_worker_of_the_former_profile_that_comes_late_writes_nothing(
        self, whole: Company
    ) -> None:
        begin(whole)
        work_off(profile=NEXT)
        whole.store("c", "five")
        [late] = outbox.claim(PROFILE, 100, 60.0)
        assert len(edges.switch()) == 1
        assert finish_encoding(whole.tenant, PROFILE, [encoded(late)]) == 0
        assert work_off(profile=NEXT) == 1
        assert served(whole) == ["five", "four", "one", "three", "two"]


class TestCancel:
    def test_it_drops_the_work_and_then_the_memories(
        self, whole: Company, superuser: psycopg.Connection
    ) -> None:
        begin(whole)
        [held, poison] = outbox.claim(NEXT, 2, 60.0)
        outbox.fail(poison, "no way", max_attempts=1)
        edges.drop(whole.tenant, whole.bank.id)
        assert profile_of(whole) == (PROFILE, None)
        assert superuser.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        assert superuser.execute("SELECT count(*) FROM dead_letter").fetchone() == (0,)
        assert finish_encoding(whole.tenant, NEXT, [encoded(held)]) == 0
        whole.store("c", "five")
        assert {row[2] for row in ask(Asker("admin"), WORK)} == {PROFILE}
        assert edges.switch() == []
        assert work_off() == 1
        assert served(whole) == ["five", "four", "one", "three", "two"]

    def test_begun_again_it_goes_on_with_what_is_there(self, whole: Company) -> None:
        begin(whole)
        work_off(profile=NEXT)
        edges.drop(whole.tenant, whole.bank.id)
        begin(whole)
        assert ask(Asker("admin"), WORK) == []
        edges.drop(whole.tenant, whole.bank.id)
        assert reconcile().former_memories == 4
        begin(whole)
        assert len(ask(Asker("admin"), WORK)) == 4

    def test_another_profile_takes_its_place(self, whole: Company) -> None:
        begin(whole)
        begin(whole, "third")
        assert {row[2] for row in ask(Asker("admin"), WORK)} == {"third"}
        work_off(profile="third")
        assert len(edges.switch()) == 1
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
        assert edges.switch() == []
        assert reconcile().queued_chunks == 0
        assert served(failed) == ["four", "one", "three", "two"]
        [row] = edges.bank_status()
        assert (row["failed"], row["failed_next"], row["memories_next"]) == (0, 1, 3)
        assert "3 of 4 chunks, 1 failed and hold up the switch (membank jobs)" in _change(row)
        assert ask(Asker("admin"), "SELECT DISTINCT status, coverage FROM document_status") == [
            ("ready", 1.0)
        ]
        assert edges.progress(failed.tenant, failed.bank.id, ["a", "b"]) == {
            "chunks": 4,
            "memories": 4,
            "pending": 0,
            "failed": 0,
        }
        assert edges.failures(failed.tenant, failed.bank.id, ["a", "b"]) == []
        [job], _ = edges.find_jobs(10)
        assert (job["state"], job["profile_id"]) == ("failed", NEXT)

    def test_tried_again_and_done_it_no_longer_does(self, failed: Company) -> None:
        assert edges.retry(failed.tenant) == 1
        assert edges.switch() == []
        assert work_off(profile=NEXT) == 1
        assert len(edges.switch()) == 1

    def test_discarded_it_no_longer_does_and_that_chunk_is_not_found(self, failed: Company) -> None:
        assert edges.discard(failed.tenant) == 1
        assert len(edges.switch()) == 1
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
        assert len(edges.switch()) == 1
        assert served(company) == ["one", "two"]
        assert ask(Asker("admin"), "SELECT count(*) FROM dead_letter") == [(0,)]

    def test_cancelled_jobs_are_kept_for_their_profile(self, whole: Company) -> None:
        begin(whole)
        whole.store("c", "five")
        assert edges.cancel(whole.tenant) == 6
        assert edges.retry(whole.tenant) == 6
        assert (work_off(), work_off(profile=NEXT)) == (1, 5)
