"""The queue as an administrator steers it, by command and by SQL."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError
from typer.testing import CliRunner

from app.cli import app as membank
from app.commands.stack import _open_work
from app.db.session import Asker
from app.errors import NotFoundError
from app.ingest.command import _paused
from app.queue import outbox
from app.upkeep.reconcile import reconcile
from tests import edges
from tests.conftest import PROFILE, Company, administer, ask, work_off
from tests.edges import pause_tenant

STATUS = (
    "SELECT status, attempts, last_error, coverage, next_try IS NULL, staleness >= '0 s'"
    " FROM document_status WHERE id = :id"
)


def command(*arguments: str) -> dict[str, object]:
    """What the command prints as JSON."""
    result = CliRunner().invoke(membank, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def listed(*arguments: str) -> list[tuple[object, ...]]:
    rows = command("jobs", "list", *arguments)["jobs"]
    assert isinstance(rows, list)
    return [(r["tenant"], r["document_id"], r["state"], r["last_error"]) for r in rows]


def fail_all() -> None:
    for work in outbox.claim(PROFILE, 100, 60.0):
        assert outbox.fail(work, "no way", max_attempts=1, traceback="line 1\nline 2")


@pytest.fixture
def three(new_company: Callable[[str], Company]) -> Company:
    """One tenant with a document in each state, beside another tenant with one that waits."""
    company = new_company("harbor")
    company.store("failed", "poison")
    fail_all()
    company.store("held", "in hand")
    outbox.claim(PROFILE, 100, 60.0)
    company.store("waits", "one\n\ntwo")
    new_company("northwind").store("theirs", "waits too")
    return company


class TestList:
    def test_it_shows_what_failed_then_what_is_held_then_what_waits(self, three: Company) -> None:
        assert listed("--tenant", "harbor") == [
            ("harbor", "failed", "failed", "no way"),
            ("harbor", "held", "encoding", None),
            ("harbor", "waits", "pending", None),
            ("harbor", "waits", "pending", None),
        ]

    def test_each_option_narrows_it(self, three: Company) -> None:
        assert len(listed()) == 5
        assert listed("--tenant", "northwind") == [("northwind", "theirs", "pending", None)]
        assert len(listed("--document", "waits")) == 2
        assert len(listed("--state", "encoding")) == 1
        assert len(listed("--bank", "handbook", "--state", "pending")) == 3
        assert listed("--bank", "another") == []

    def test_a_limit_says_how_many_there_are(self, three: Company) -> None:
        found = command("jobs", "list", "--limit", "2")
        assert found["total"] == 5
        shown = CliRunner().invoke(membank, ["jobs", "list", "--limit", "2"])
        assert "failed    harbor/handbook/failed chunk" in shown.stdout
        assert "and 3 more" in shown.stdout

    def test_a_bank_that_is_not_there_is_named(self, three: Company) -> None:
        result = CliRunner().invoke(membank, ["jobs", "list", "--tenant", "harbor", "--bank", "x"])
        assert isinstance(result.exception, NotFoundError)
        assert "bank 'x' of tenant 'harbor' does not exist" in str(result.exception)


class TestChange:
    def test_retried_work_starts_afresh_and_is_done(
        self, three: Company, superuser: psycopg.Connection
    ) -> None:
        assert command("jobs", "retry", "--tenant", "harbor")["retried"] == 1
        row = superuser.execute(
            "SELECT attempts, last_error, lease_token FROM outbox WHERE document_id = 'failed'"
        ).fetchone()
        assert row == (0, None, None)
        assert work_off() == 4, "all but what is held"
        assert ask(Asker("admin"), "SELECT count(*) FROM dead_letter") == [(0,)]

    def test_a_split_that_failed_is_tried_again_at_the_present_revision(
        self, company: Company
    ) -> None:
        company.store("d", "one")
        work_off()
        administer("UPDATE document SET text = 'two'")
        fail_all()
        assert edges.retry(company.tenant) == 1
        assert work_off() == 1
        assert ask(Asker("admin"), "SELECT text FROM chunk") == [("two",)]

    def test_retry_of_what_is_queued_already_leaves_one_row(self, company: Company) -> None:
        company.store("d", "one")
        fail_all()
        administer(
            "INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision)"
            " SELECT l.tenant_id, l.bank_id, l.document_id, l.chunk_id, :profile, 0"
            " FROM dead_letter l",
            profile=PROFILE,
        )
        assert edges.retry(company.tenant) == 1
        assert work_off() == 1

    def test_cancelled_work_is_kept_and_can_be_retried(self, three: Company) -> None:
        assert command("jobs", "cancel", "--tenant", "harbor")["cancelled"] == 2
        assert listed("--document", "waits") == [("harbor", "waits", "failed", "cancelled")] * 2
        assert listed("--document", "held") == [("harbor", "held", "encoding", None)]
        assert listed("--tenant", "northwind") == [("northwind", "theirs", "pending", None)]
        assert command("jobs", "retry", "--tenant", "harbor", "--document", "waits") == {
            "tenant": "harbor",
            "retried": 2,
        }
        assert len(listed("--document", "waits", "--state", "pending")) == 2

    def test_discard_removes_only_what_failed_there(self, three: Company) -> None:
        assert edges.discard(three.tenant, document="waits") == 0
        found = command("jobs", "discard", "--tenant", "harbor", "--bank", "handbook")
        assert found["discarded"] == 1
        assert edges.discard(three.tenant) == 0
        assert edges.retry(three.tenant) == 0
        assert not reconcile().any  # nor does that bring it back
        assert len(listed()) == 4
        left = ask(Asker("admin"), STATUS, id="failed")
        assert left == [("failed", 0, None, 0.0, True, None)], "it is not ready for that"

    def test_nothing_of_another_tenant_or_document_is_touched(
        self, three: Company, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("third")
        other.store("failed", "poison")
        other.store("second", "poison")
        fail_all()
        assert edges.retry(other.tenant, document="failed") == 1
        assert edges.cancel(other.tenant, bank=three.bank.id) == 0
        assert ("harbor", "failed", "failed", "no way") in listed()
        assert ("third", "second", "failed", "no way") in listed()

    @pytest.mark.parametrize("role", ["app", "worker"])
    @pytest.mark.parametrize(
        "statement",
        ["SELECT job_retry(1)", "SELECT job_cancel(1)", "SELECT job_discard(1)", "TABLE job"],
    )
    def test_only_the_administrator_may(self, company: Company, role: str, statement: str) -> None:
        with pytest.raises(ProgrammingError, match="permission denied"):
            ask(Asker(role, company.tenant), statement)  # type: ignore[arg-type]


class TestPause:
    def test_work_of_a_paused_tenant_is_left_alone_until_it_is_resumed(
        self, new_company: Callable[[str], Company]
    ) -> None:
        quiet, other = new_company("quiet"), new_company("other")
        quiet.store("d", "one\n\ntwo")
        other.store("d", "one")
        assert command("tenant", "pause", "quiet") == {"tenant": "quiet", "paused": True}
        assert {w.tenant for w in outbox.claim(PROFILE, 100, 0.0)} == {other.tenant}
        assert outbox.waiting_profiles() == [PROFILE]
        assert work_off() == 1
        assert outbox.waiting_profiles() == [], "nobody is woken for what is paused"
        assert [row["paused"] for row in edges.bank_status()] == [False, True]
        assert command("tenant", "resume", "quiet") == {"tenant": "quiet", "paused": False}
        assert work_off() == 2

    def test_sql_pauses_too_and_what_is_held_is_finished(self, company: Company) -> None:
        company.store("d", "one")
        [held] = outbox.claim(PROFILE, 100, 60.0)
        administer("UPDATE tenant SET paused = true WHERE name = 'harbor'")
        outbox.renew([held], 60.0)
        outbox.release([held])
        assert work_off() == 0
        administer("UPDATE tenant SET paused = false WHERE name = 'harbor'")
        assert work_off() == 1

    def test_a_tenant_that_is_not_there_is_named(self, database: str) -> None:
        with pytest.raises(NotFoundError, match="tenant 'nobody' does not exist"):
            pause_tenant("nobody", True)


class TestStatus:
    def test_a_document_says_how_far_it_is_and_why_not_further(self, company: Company) -> None:
        company.store("d", "one\n\ntwo\n\nthree\n\nfour")
        assert ask(Asker("admin"), STATUS, id="d") == [("pending", 0, None, 0.0, False, True)]
        first, second, *rest = outbox.claim(PROFILE, 100, 60.0)
        assert ask(Asker("admin"), STATUS, id="d") == [("encoding", 1, None, 0.0, True, True)]
        outbox.release(rest)
        outbox.fail(first, "for now", max_attempts=9)
        assert ask(Asker("admin"), STATUS, id="d")[0][:3] == ("encoding", 1, "for now")
        outbox.fail(second, "for good", max_attempts=1)
        assert work_off() == 2
        assert ask(Asker("admin"), STATUS, id="d") == [("failed", 1, "for good", 0.5, False, True)]
        administer("UPDATE outbox SET not_before = now()")
        edges.retry(company.tenant)
        assert work_off() == 2
        assert ask(Asker("admin"), STATUS, id="d") == [("ready", 0, None, 1.0, True, None)]

    def test_a_bank_counts_its_documents_work(self, company: Company) -> None:
        administer(
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
            " VALUES (:tenant, :bank, 'd', 's', 't', 'one', '')",
            tenant=company.tenant,
            bank=company.bank.id,
        )
        administer("UPDATE outbox SET created_at = now() - interval '1 hour'")
        [row] = edges.bank_status()
        assert (row["pending"], row["attempts"], row["coverage"]) == (1, 0, None)
        assert isinstance(row["staleness"], float)
        assert 3600 <= row["staleness"] < 7200
        work_off()
        [row] = edges.bank_status()
        assert (row["coverage"], row["staleness"], row["next_try"]) == (1.0, None, None)
        assert (row["throughput"], row["time_left"]) == (row["memories"] / 60, 0.0)

    def test_every_column_of_the_views_that_is_no_plain_name_has_a_comment(
        self, superuser: psycopg.Connection
    ) -> None:
        bare = superuser.execute(
            "SELECT attrelid::regclass || '.' || attname FROM pg_attribute"
            " WHERE attrelid IN ('job'::regclass, 'document_status'::regclass,"
            " 'bank_status'::regclass) AND attname IN ('status', 'state', 'attempts', 'next_try',"
            " 'last_error', 'staleness', 'coverage', 'paused', 'pending', 'failed')"
            " AND col_description(attrelid, attnum) IS NULL"
        ).fetchall()
        assert bare == []


def test_the_functions_take_their_arguments_by_name(company: Company) -> None:
    company.store("d", "one")
    company.store("e", "two")
    call = f"SELECT job_cancel({company.tenant}, document => 'd')"
    assert ask(Asker("admin"), call) == [(1,)]
    assert ask(Asker("admin"), f"SELECT job_retry({company.tenant})") == [(1,)]
    assert ask(Asker("admin"), "SELECT DISTINCT state FROM job") == [("pending",)]


def test_an_ingest_that_would_wait_for_a_paused_tenant_says_so(company: Company) -> None:
    assert _paused({company.tenant}) is None
    pause_tenant("harbor", True)
    assert "membank tenant resume 'harbor'" in str(_paused({company.tenant}))


def test_the_status_for_people_says_why_a_bank_is_not_done(company: Company) -> None:
    company.store("d", "one\n\ntwo")
    [work, *rest] = outbox.claim(PROFILE, 10, 60.0)
    outbox.fail(work, "RuntimeError: no way", max_attempts=1)
    outbox.release(rest)
    pause_tenant("harbor", True)
    told = _open_work(edges.bank_status()[0])
    assert told.startswith("paused (membank tenant resume), 0% encoded, oldest work is ")
    assert told.endswith("last error: RuntimeError: no way")


def test_retry_and_cancel_beside_edits_deletions_and_workers_block_nobody(
    company: Company, superuser: psycopg.Connection
) -> None:
    over = threading.Event()

    def repeat(step: Callable[[], object]) -> None:
        while not over.is_set():
            step()

    with ThreadPoolExecutor(3) as pool:
        others = [
            pool.submit(repeat, lambda: edges.cancel(company.tenant)),
            pool.submit(repeat, lambda: edges.retry(company.tenant)),
            pool.submit(repeat, work_off),
        ]
        try:
            for i in range(30):
                company.store("d", f"one\n\ntwo\n\n{i}")
                administer("UPDATE document SET text = text || '!'")
                if i % 3 == 0:
                    administer("DELETE FROM document")
        finally:
            over.set()
        for other in others:
            other.result()
    edges.retry(company.tenant)
    work_off()
    assert superuser.execute(
        "SELECT DISTINCT status, coverage FROM document_status"
    ).fetchall() == [("ready", 1.0)]
