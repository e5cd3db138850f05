"""The audit log: what is noted, by whom, and that nobody takes it back."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from typer.testing import CliRunner

from app.access.audit import note
from app.answer import retrieval
from app.answer.ask import Answer, record
from app.answer.recall import Source
from app.answer.retrieval import Found, Reader, Request, find
from app.bank import documents
from app.bank.roles import BankRole
from app.cli import app as membank
from app.db.session import Asker, transaction
from app.memory.codec.pack import SIMPLE
from app.search.search import Passage
from tests import edges
from tests.conftest import PROFILE, Company, administer, ask, change, work_off
from tests.edges import add_principal, join_group, leave_group


def noted(company: Company, action: str | None = None) -> list[dict[str, Any]]:
    """Events of the company, of that action."""
    return [e for e in edges.events(company.tenant) if action in (None, e["action"])]


def refused(asker: Asker, statement: str) -> str | None:
    with pytest.raises(DBAPIError) as caught:
        change(asker, statement)
    return getattr(caught.value.orig, "sqlstate", None)


class TestNobodyTakesItBack:
    @pytest.mark.parametrize("role", ["app", "worker"])
    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT count(*) FROM audit_event",
            "UPDATE audit_event SET action = 'x'",
            "DELETE FROM audit_event",
            "TRUNCATE audit_event",
            "INSERT INTO audit_event (tenant_id, action, at) VALUES (1, 'x', now())",
            "INSERT INTO audit_event (tenant_id, action, actor) VALUES (1, 'x', 'y')",
            "INSERT INTO audit_event (tenant_id, action) VALUES (current_tenant() + 1, 'x')",
            "INSERT INTO audit_event (tenant_id, action) VALUES (current_tenant(), 'x')"
            " RETURNING id",
        ],
    )
    def test_app_and_worker_only_add(self, company: Company, role: Any, statement: str) -> None:
        asker = Asker(role, company.tenant)
        assert (
            change(
                asker, "INSERT INTO audit_event (tenant_id, action) VALUES (current_tenant(), 'x')"
            )
            == 1
        )
        assert refused(asker, statement) == "42501"

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE audit_event SET action = 'x'",
            "DELETE FROM audit_event",
            "TRUNCATE audit_event",
            "SELECT audit_erase(tenant_id, '{}') FROM bank",
        ],
    )
    def test_an_administrator_reads_and_no_more(self, company: Company, statement: str) -> None:
        company.store("a", "The badge is orange.")
        before = noted(company)
        assert before
        assert refused(Asker("admin"), statement) in ("42501", "23001")
        assert noted(company) == before

    @pytest.mark.parametrize(
        "statement",
        ["UPDATE audit_event SET action = 'x'", "DELETE FROM audit_event", "TRUNCATE audit_event"],
    )
    def test_a_superuser_is_stopped_by_the_trigger(
        self, company: Company, superuser: psycopg.Connection, statement: str
    ) -> None:
        superuser.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.Error, match="only added to"):
            superuser.execute(statement)

    def test_a_grant_too_many_opens_nothing(
        self, company: Company, superuser: psycopg.Connection
    ) -> None:
        company.store("a", "The badge is orange.")
        with superuser.transaction(force_rollback=True):
            superuser.execute(
                "GRANT UPDATE, DELETE, TRUNCATE, SELECT ON audit_event TO membank_app"
            )
            superuser.execute("SET ROLE membank_app")
            for statement in ("DELETE FROM audit_event", "TRUNCATE audit_event"):
                with (
                    pytest.raises(psycopg.Error, match="only added to"),
                    superuser.transaction(),
                ):
                    superuser.execute(statement)


class TestRetention:
    @pytest.fixture
    def database(self, own_database: str) -> str:
        return own_database

    @pytest.fixture
    def old(self, company: Company, superuser: psycopg.Connection) -> Company:
        """Events of 100, 40 and 0 days ago."""
        superuser.execute("ALTER TABLE audit_event DISABLE TRIGGER audit_is_final")
        superuser.execute("DELETE FROM audit_event")
        for days in (100, 40, 0):
            with transaction(Asker("worker", company.tenant)) as connection:
                note(connection, company.tenant, f"{days} days ago")
            superuser.execute(
                "UPDATE audit_event SET at = at - make_interval(days => %s) WHERE action = %s",
                [days, f"{days} days ago"],
            )
        superuser.execute("ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_is_final")
        return company

    def test_what_is_older_goes_and_nothing_else(
        self, old: Company, new_company: Callable[[str], Company]
    ) -> None:
        assert edges.expire(old.tenant, 60) == 1
        assert [e["action"] for e in noted(old)] == ["40 days ago", "0 days ago"]
        assert edges.expire(old.tenant, 30) == 1
        assert [e["action"] for e in noted(old)] == ["0 days ago"]

    @pytest.mark.parametrize("days", ["29", "0", "-1", "NULL"])
    def test_not_even_the_worker_deletes_what_is_younger_than_30_days(
        self, old: Company, days: str
    ) -> None:
        with pytest.raises(IntegrityError, match="last 30 days are kept"):
            ask(Asker("worker", old.tenant), f"SELECT audit_expire({old.tenant}, {days})")

    def test_the_app_deletes_nothing(self, old: Company) -> None:
        with pytest.raises(ProgrammingError, match="permission denied"):
            ask(Asker("app", old.tenant), f"SELECT audit_expire({old.tenant}, 60)")

    def test_a_row_cannot_be_made_old(self, old: Company, superuser: psycopg.Connection) -> None:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute(
            "INSERT INTO audit_event (tenant_id, action, at, actor)"
            " VALUES (%s, 'forged', '2000-01-01', 'alice')",
            [old.tenant],
        )
        event = noted(old)[-1]
        assert event["at"].year > 2000
        assert event["actor"] != "alice"


class TestWhatIsNoted:
    def test_documents_that_come_change_and_go(self, company: Company) -> None:
        alice = company.reader("alice")
        edges.grant(company.bank, "principal:alice", BankRole.ADMIN)
        draft = documents.Draft("a", "a.md", "Secret title", "Secret text", None, {})
        bank = company.bank.id
        edges.store(company.tenant, bank, draft, [], alice.principal)
        administer("UPDATE document SET text = 'Secret other text'")
        edges.set_access(company.tenant, bank, "a", ["group:hr"], alice.principal)
        edges.set_access(company.tenant, bank, "a", ["everyone"])
        edges.forget(company.tenant, "a", None, alice.principal)
        found = [
            (e["actor"], e["action"], e["document_ids"], e["detail"])
            for e in noted(company)
            if e["document_ids"]
        ]
        assert found == [
            ("alice", "ingest", ["a"], {"new": True}),
            ("membank_admin", "ingest", ["a"], {"new": False}),
            ("alice", "access", ["a"], {"was": ["everyone"], "is": ["group:hr"]}),
            ("membank_worker", "access", ["a"], {"was": ["group:hr"], "is": ["everyone"]}),
            ("alice", "forget", ["a"], {}),
        ]
        assert {e["bank"] for e in noted(company, "ingest")} == {"handbook"}
        assert "Secret" not in str(noted(company))

    def test_what_a_worker_does_to_a_document_is_no_event(self, company: Company) -> None:
        administer(
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
            " VALUES (:t, :b, 'a', 'a', 'a', 'One.\n\nTwo.', '')",
            t=company.tenant,
            b=company.bank.id,
        )
        before = noted(company)
        assert work_off() == 2
        assert noted(company) == before

    def test_one_statement_is_one_event_of_a_bank(self, company: Company) -> None:
        for name in "abc":
            company.store(name, "text")
        administer("UPDATE document SET access = '{}'")
        administer("TRUNCATE document CASCADE")
        [access] = noted(company, "access")
        assert access["document_ids"] == ["a", "b", "c"]
        [forget] = noted(company, "forget")
        assert forget["detail"] == {"truncated": 3}

    def test_roles_by_command_and_by_sql(self, company: Company) -> None:
        add_principal(company.name, "alice")
        edges.grant(company.bank, "principal:alice", BankRole.READER)
        administer("UPDATE bank_member SET role = 'admin' WHERE grantee = 'principal:alice'")
        edges.revoke(company.bank, "principal:alice")
        found = [
            (
                e["actor"],
                e["detail"].get("was", {}).get("role"),
                e["detail"].get("is", {}).get("role"),
            )
            for e in noted(company, "role")
        ]
        assert found[-3:] == [
            ("membank_worker", None, "reader"),
            ("membank_admin", "reader", "admin"),
            ("membank_worker", "admin", None),
        ]

    def test_groups(self, company: Company) -> None:
        add_principal(company.name, "alice")
        join_group(company.name, "hr", "alice")
        join_group(company.name, "hr", "alice")
        leave_group(company.name, "hr", "alice")
        assert [sorted(e["detail"]) for e in noted(company, "group")] == [["is"], ["was"]]

    def test_keys_without_their_hashes(self, company: Company) -> None:
        add_principal(company.name, "alice")
        issued = edges.issue(company.name, "alice")
        edges.holder_of(issued.token)  # that it was used is no change of a right
        edges.revoke_key(company.name, issued.id)
        made, revoked = noted(company, "key")
        assert made["detail"]["is"]["scopes"] == ["read"]
        assert revoked["detail"]["was"].get("revoked_at") is None
        assert revoked["detail"]["is"]["revoked_at"]
        assert "hash" not in str(noted(company, "key"))

    def test_the_memories_of_a_search_and_of_an_answer(
        self, company: Company, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = Request(company.reader("alice"), company.bank.id, PROFILE, SIMPLE["int8"])
        monkeypatch.setattr(Reader, "begin", lambda _: request)
        passages = [Passage(n, "a", "Title", "a.md", "Secret text", 0.5, 0.5) for n in (7, 8)]
        monkeypatch.setattr(retrieval, "found_for", lambda *_: Found(passages, {}))
        find(Reader(request.asker, request.bank), "Secret question?", 2)
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        answer = Answer("Secret", "memory", [Source.of(p) for p in passages], {}, usage)
        record(request, answer)
        search, asked = noted(company, "search") + noted(company, "ask")
        for event in (search, asked):
            assert (event["actor"], event["principal_id"]) == ("alice", request.asker.principal)
            assert (event["document_ids"], event["chunk_ids"]) == (["a"], [7, 8])
        assert asked["detail"] == {"mode": "memory", "tokens": 7}
        assert "Secret" not in str(noted(company))


class TestExport:
    def run(self, *arguments: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(
            membank, ["audit", "export", *arguments, "--json"], catch_exceptions=False
        )
        assert result.exit_code == 0
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_events_are_lines_of_json_from_a_time_on(
        self, company: Company, new_company: Callable[[str], Company]
    ) -> None:
        new_company("northwind").store("b", "text")
        company.store("a", "text")
        found = self.run("--tenant", company.name)
        assert [e["action"] for e in found] == ["role", "ingest"]
        assert self.run("--tenant", company.name, "--since", "2999-01-01") == []

    def test_for_people_it_is_one_line_each(self, company: Company) -> None:
        company.store("a", "text")
        result = CliRunner().invoke(membank, ["audit", "export", "--tenant", company.name])
        assert result.stdout.splitlines()[-1].endswith(
            'membank_worker  ingest  handbook a  {"new": true}'
        )
