"""Quotas: where they stop a tenant, what they say, and how exact they are under many at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from app.access.quota import Quota, count_tokens
from app.answer import retrieval
from app.cli import app as membank
from app.db.session import Asker, transaction
from app.errors import QuotaError
from app.memory.codec.pack import SIMPLE
from tests import edges
from tests.conftest import Company, administer, ask, begin_request, work_off
from tests.edges import quota_of, retry, set_quota

THREADS = 8


def at_once(what: Callable[[int], object], each: int = 1) -> int:
    """How often it is let through when 8 threads do it at the same time, each so many times."""
    start = threading.Barrier(THREADS)

    def some(thread: int) -> int:
        passed = 0
        start.wait()
        for turn in range(each):
            try:
                what(thread * each + turn)
                passed += 1
            except QuotaError:
                pass
        return passed

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(some, range(THREADS)))


class TestDocuments:
    def test_one_more_than_the_limit_is_refused_and_both_numbers_told(
        self, company: Company
    ) -> None:
        set_quota(company.tenant, Quota(documents=2))
        company.store("a", "one")
        company.store("b", "two")
        with pytest.raises(QuotaError, match="'harbor' may hold 2 documents and has no room for 1"):
            company.store("c", "three")
        assert ask(Asker("admin"), "SELECT count(*) FROM document") == [(2,)]

    def test_what_is_stored_can_be_edited_and_forgotten_room_used_again(
        self, company: Company
    ) -> None:
        company.store("a", "one")
        company.store("b", "two")
        set_quota(company.tenant, Quota(documents=1))
        assert company.store("a", "another").status == "changed"
        administer("DELETE FROM document")
        assert company.store("c", "three").status == "new"

    def test_the_limit_counts_for_sql_too_and_for_that_tenant_alone(
        self, company: Company, new_company: Callable[[str], Company]
    ) -> None:
        set_quota(company.tenant, Quota(documents=0))
        insert = (
            "INSERT INTO document_load (tenant, bank, id, text)"
            " VALUES (:tenant, 'handbook', 'a', 'x')"
        )
        with pytest.raises(QuotaError, match="no room"):
            administer(insert, tenant=company.name)
        assert administer(insert, tenant=new_company("northwind").name) == 1

    def test_those_at_the_same_time_overrun_it_by_no_more_than_they_are(
        self, company: Company
    ) -> None:
        set_quota(company.tenant, Quota(documents=10))
        passed = at_once(lambda n: company.store(f"d{n}", "text"), each=5)
        assert 10 <= passed < 10 + THREADS
        assert ask(Asker("admin"), "SELECT count(*) FROM document") == [(passed,)]


class TestBytes:
    def test_a_memory_without_room_is_buried_with_a_plain_error(self, company: Company) -> None:
        set_quota(company.tenant, Quota(bytes=20))
        company.store("a", "1234\n\n5678")  # two memories of 10 bytes
        assert work_off() == 2
        company.store("b", "9")
        assert work_off() == 0
        [[error, attempts]] = ask(Asker("admin"), "SELECT error, attempts FROM dead_letter")
        assert "may hold 20 bytes of memories and holds 20" in error
        assert attempts == 1
        assert ask(Asker("admin"), "SELECT count(*) FROM memory_key") == [(2,)]

        set_quota(company.tenant, Quota(bytes=27))
        assert retry(company.tenant) == 1
        assert work_off() == 1


class TestUploads:
    def test_what_has_no_room_is_refused_until_something_is_deleted(
        self, company: Company, new_company: Callable[[str], Company]
    ) -> None:
        alice, other = company.reader("alice"), new_company("northwind").reader("alice")
        set_quota(company.tenant, Quota(upload_bytes=10))
        first = edges.upload(alice, "a.md", "assistants", b"12345678")
        with pytest.raises(
            QuotaError, match="may hold 10 bytes of uploaded files and has no room for 3 more"
        ):
            edges.upload(alice, "b.md", "assistants", b"abc")
        edges.upload(alice, "b.md", "assistants", b"ab")
        edges.upload(other, "c.md", "assistants", b"x" * 100)
        assert quota_of(company.tenant)[1].upload_bytes == 10
        edges.withdraw(alice, first.id, administers=False)
        edges.upload(alice, "b.md", "assistants", b"abc")

    def test_those_at_the_same_time_overrun_it_by_no_more_than_they_are(
        self, company: Company
    ) -> None:
        alice = company.reader("alice")
        set_quota(company.tenant, Quota(upload_bytes=10))
        passed = at_once(lambda n: edges.upload(alice, f"{n}.md", "assistants", b"x"), each=5)
        assert 10 <= passed < 10 + THREADS


class TestRequests:
    @pytest.fixture
    def alice(self, company: Company) -> Asker:
        return company.reader("alice")

    def test_exactly_the_limit_is_let_through_under_many_at_once(
        self, company: Company, alice: Asker
    ) -> None:
        set_quota(company.tenant, Quota(requests=10))
        assert at_once(lambda _: begin_request(alice), each=5) == 10
        with pytest.raises(QuotaError, match="may use 10 requests a day and has used 10"):
            begin_request(alice)
        assert quota_of(company.tenant)[1].requests == 10

    def test_a_new_day_begins_at_nothing(
        self, company: Company, alice: Asker, superuser: psycopg.Connection
    ) -> None:
        set_quota(company.tenant, Quota(requests=1))
        begin_request(alice)
        superuser.execute("UPDATE tenant_usage SET day = day - 1")
        begin_request(alice)

    @pytest.mark.parametrize("quota", [Quota(requests=0), Quota(tokens=0)])
    def test_a_limit_of_nothing_lets_nothing_through(
        self, company: Company, alice: Asker, quota: Quota
    ) -> None:
        set_quota(company.tenant, quota)
        with pytest.raises(QuotaError):
            begin_request(alice)

    def test_tokens_are_overrun_by_the_answers_in_flight_alone(
        self, company: Company, alice: Asker
    ) -> None:
        set_quota(company.tenant, Quota(tokens=100))

        def answer(_: int) -> None:
            begin_request(alice)
            with transaction(alice) as connection:
                count_tokens(connection, 10)

        passed = at_once(answer, each=5)
        assert 10 <= passed < 10 + THREADS
        with pytest.raises(QuotaError, match=f"may use 100 tokens a day and has used {passed}0"):
            begin_request(alice)

    def test_without_a_limit_it_is_counted_all_the_same(
        self, company: Company, alice: Asker
    ) -> None:
        for _ in range(3):
            begin_request(alice)
        assert quota_of(company.tenant) == (Quota(), Quota(0, 0, 3, 0, 0))

    def test_beyond_the_limit_nothing_is_looked_for(
        self, company: Company, alice: Asker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_quota(company.tenant, Quota(requests=1))
        found: list[object] = []
        nothing = retrieval.Found([], {})
        monkeypatch.setattr(retrieval, "found_for", lambda *_: found.append(1) or nothing)
        monkeypatch.setattr(retrieval, "codec_of", lambda _: SIMPLE["int8"])
        reader = retrieval.Reader(alice, company.bank.id)
        assert retrieval.find(reader, "question") == nothing
        with pytest.raises(QuotaError):
            retrieval.find(reader, "question")
        assert found == [1]

    def test_who_asks_cannot_count_back(self, company: Company, alice: Asker) -> None:
        begin_request(alice)
        with transaction(alice) as connection:
            count_tokens(connection, -5)
        assert quota_of(company.tenant)[1].tokens == 0
        with pytest.raises(DBAPIError, match="permission denied"):
            ask(alice, "UPDATE tenant_usage SET requests = 0")


def test_the_command_sets_what_it_is_given_and_leaves_the_rest(company: Company) -> None:
    def run(*options: str) -> str:
        result = CliRunner().invoke(
            membank, ["tenant", "quota", company.name, *options], catch_exceptions=False
        )
        assert result.exit_code == 0
        return result.stdout

    run("--documents", "10", "--bytes", "1000")
    run("--bytes", "none", "--requests", "5")
    assert quota_of(company.tenant)[0] == Quota(10, None, 5, None)
    assert "bytes: 0 of no limit" in run()
    assert "documents: 0 of 10" in run()
