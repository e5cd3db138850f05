"""Roles in banks: who may read by the database's policies, who may write by the program's check."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from app.access.identity import Identity
from app.bank import documents
from app.bank.documents import Draft
from app.bank.find import Bank
from app.bank.roles import BankRole
from app.cli import app as membank
from app.db.session import Asker, transaction
from app.errors import ForbiddenError, NotFoundError, UsageError
from app.ingest.document import Document, Failure
from app.ingest.storing import Ingested, ingest
from app.search.nearest import Nearest
from app.search.search import search
from app.store.blobs import load_blobs, readable
from tests import edges
from tests.conftest import NORTH, PROFILE, Company, administer, ask, pieces_of, work_off
from tests.edges import add_bank, forget, grant, join_group, leave_group, revoke, set_access
from tests.edges import members_of as members

READ = ("document", "chunk", "memory_key", "memory_blob")


@pytest.fixture
def alice(company: Company) -> Asker:
    return company.reader("alice")


@pytest.fixture
def hana(company: Company) -> Asker:
    return company.reader("hana", "hr")


@pytest.fixture
def closed(company: Company, alice: Asker, hana: Asker) -> Bank:
    """The company's bank with one encoded document for everyone, which lets nobody in."""
    company.store("handbook", "Hours are nine to five.")
    work_off()
    revoke(company.bank, "everyone")
    return company.bank


def seen(asker: Asker) -> tuple[int, ...]:
    return tuple(ask(asker, f"SELECT count(*) FROM {table}")[0][0] for table in READ)


NOTHING, WHOLE = (0, 0, 0, 0), (1, 1, 1, 1)


def store(
    by: Asker,
    bank: Bank,
    document: str,
    body: str = "new words",
    access: Sequence[str] | None = None,
) -> documents.Stored:
    draft = Draft(document, f"{document}.md", "Title", body, access, {})
    return edges.store(bank.tenant, bank.id, draft, pieces_of(body), by.principal)


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(membank, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads(result.stdout)
    return found


class TestReading:
    def test_a_new_bank_is_for_everyone_of_its_tenant_to_read(
        self, company: Company, alice: Asker
    ) -> None:
        company.store("handbook", "Hours are nine to five.")
        work_off()
        assert seen(alice) == WHOLE
        assert members(company.bank) == {"everyone": BankRole.READER}

    def test_a_bank_without_members_is_closed_in_all_that_was_made_of_it(
        self, closed: Bank, alice: Asker, hana: Asker
    ) -> None:
        assert seen(alice) == seen(hana) == NOTHING

    def test_a_bank_that_is_made_closed_lets_nobody_in(self, company: Company) -> None:
        assert members(add_bank(company.name, "private", PROFILE, "{}", closed=True)) == {}

    def test_a_role_counts_from_the_next_question_and_queues_nothing(
        self, closed: Bank, alice: Asker, hana: Asker
    ) -> None:
        [[chunk]] = ask(Asker("admin"), "SELECT id FROM chunk")

        def found(asker: Asker) -> list[bool]:
            return [
                bool(search(asker, closed.id, PROFILE, NORTH, 5)),
                bool(readable(asker, PROFILE, [chunk])),
                bool(load_blobs(asker, PROFILE, [chunk])),
                seen(asker) == WHOLE,
            ]

        before = ask(Asker("admin"), "SELECT revision, encoded_at FROM document, memory_key")
        grant(closed, "group:hr", BankRole.READER)
        assert (found(alice), found(hana)) == ([False] * 4, [True] * 4)
        grant(closed, "principal:alice", BankRole.WRITER)
        assert (found(alice), found(hana)) == ([True] * 4, [True] * 4)
        revoke(closed, "group:hr")
        assert (found(alice), found(hana)) == ([True] * 4, [False] * 4)
        join_group("harbor", "sales", "hana")
        grant(closed, "group:sales", BankRole.ADMIN)
        assert found(hana) == [True] * 4
        leave_group("harbor", "sales", "hana")
        assert found(hana) == [False] * 4
        assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(0,)]
        assert ask(Asker("admin"), "SELECT revision, encoded_at FROM document, memory_key") == (
            before
        )

    def test_role_and_list_are_both_needed_whatever_the_role(
        self, closed: Bank, alice: Asker, hana: Asker
    ) -> None:
        grant(closed, "everyone", BankRole.ADMIN)
        set_access(closed.tenant, closed.id, "handbook", ["group:hr"])
        assert (seen(alice), seen(hana)) == (NOTHING, WHOLE)
        revoke(closed, "everyone")
        assert seen(hana) == NOTHING
        assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(0,)]

    def test_a_role_in_one_bank_opens_no_other(
        self, closed: Bank, alice: Asker, company: Company
    ) -> None:
        other = add_bank(company.name, "other", PROFILE, "{}")
        grant(other, "principal:alice", BankRole.ADMIN)
        assert seen(alice) == NOTHING
        grant(closed, "principal:alice", BankRole.READER)
        revoke(other, "everyone")
        revoke(other, "principal:alice")
        assert seen(alice) == WHOLE

    def test_the_bank_that_a_search_names_hides_the_others_and_opens_none(
        self, closed: Bank, alice: Asker, company: Company
    ) -> None:
        other = add_bank(company.name, "other", PROFILE, "{}")
        store(Asker("worker", other.tenant), other, "theirs")
        work_off()

        def seen_in(bank: object) -> list[str]:
            with transaction(alice) as connection:
                connection.execute(
                    text("SELECT set_config('membank.searched', :bank, true)"), {"bank": str(bank)}
                )
                found = connection.execute(text("SELECT document_id FROM memory_key ORDER BY 1"))
                return list(found.scalars())

        assert [seen_in(bank) for bank in ("", closed.id, other.id)] == [["theirs"], [], ["theirs"]]
        grant(closed, "principal:alice", BankRole.READER)
        assert seen_in("") == ["handbook", "theirs"]
        assert [seen_in(bank) for bank in (closed.id, other.id, 0)] == [
            ["handbook"],
            ["theirs"],
            [],
        ]

    def test_a_role_of_another_tenants_namesake_opens_nothing(
        self, closed: Bank, alice: Asker, new_company: Callable[[str], Company]
    ) -> None:
        theirs = new_company("northwind")
        stranger = theirs.reader("alice", "hr")
        grant(theirs.bank, "principal:alice", BankRole.ADMIN)
        grant(closed, "principal:hana", BankRole.READER)
        assert seen(alice) == seen(stranger) == NOTHING

    def test_without_a_principal_nothing_is_read(self, closed: Bank) -> None:
        grant(closed, "everyone", BankRole.ADMIN)
        assert seen(Asker("app", closed.tenant)) == NOTHING

    @pytest.mark.parametrize("entry", ["alice", "principal:", "*", "Everyone", ""])
    def test_an_entry_of_another_form_is_refused_also_in_sql(
        self, closed: Bank, entry: str
    ) -> None:
        with pytest.raises(UsageError):
            grant(closed, entry, BankRole.READER)
        with pytest.raises(DBAPIError, match="check constraint"):
            administer(
                "INSERT INTO bank_member (tenant_id, bank_id, grantee, role)"
                " SELECT tenant_id, id, :entry, 'reader' FROM bank",
                entry=entry,
            )

    def test_who_is_unknown_is_granted_nothing(self, closed: Bank) -> None:
        with pytest.raises(NotFoundError):
            grant(closed, "principal:nobody", BankRole.READER)
        with pytest.raises(NotFoundError):
            revoke(closed, "principal:nobody")

    def test_rights_are_computed_once_a_statement_and_documents_are_hashed(
        self, company: Company, alice: Asker, superuser: psycopg.Connection
    ) -> None:
        """Not for each of many keys: see app/search/nearest.py."""
        for number in range(20):
            company.store(f"d{number}", "\n\n".join(f"{number} {i}" for i in range(20)))
        work_off()
        superuser.execute("ANALYZE")
        query, values = Nearest(alice, company.bank.id, PROFILE, NORTH).statement("all", 5)
        with transaction(alice) as connection:
            lines = connection.execute(
                text(f"EXPLAIN (ANALYZE, VERBOSE) {query.text}"), values
            ).scalars()
            plan = "\n".join(lines)
        assert "hashed SubPlan" in plan
        [keys] = re.findall(r"on public\.memory_key k .*\n(?:.*\n)*?.*Filter: (.*)", plan)
        assert "(hashed SubPlan" in keys
        assert "EXISTS(SubPlan" not in keys
        for line in plan.splitlines():
            if "current_banks()" in line or "current_readers()" in line:
                assert line.strip().startswith("Output:")
        computed = re.findall(
            r"Result .*loops=(\d+)\)\n *Output: current_(?:banks|readers)\(\)", plan
        )
        assert set(computed) == {"1"}


class TestWriting:
    @pytest.fixture
    def bank(self, closed: Bank) -> Bank:
        """alice is its writer, hana its reader."""
        grant(closed, "principal:alice", BankRole.WRITER)
        grant(closed, "principal:hana", BankRole.READER)
        return closed

    def test_a_writer_stores_edits_and_forgets(self, bank: Bank, alice: Asker) -> None:
        assert store(alice, bank, "new").status == "new"
        assert store(alice, bank, "new", "other words").status == "changed"
        assert store(alice, bank, "handbook").status == "changed"
        assert forget(bank.tenant, "new", bank.id, alice.principal).documents == 1

    def test_a_reader_does_none_of_it(self, bank: Bank, hana: Asker) -> None:
        before = ask(Asker("admin"), "SELECT * FROM document")
        for document in ("new", "handbook"):
            with pytest.raises(ForbiddenError, match=r"writer in bank 'handbook'.*reader"):
                store(hana, bank, document)
        for where in (bank.id, None):
            with pytest.raises(ForbiddenError, match="writer"):
                forget(bank.tenant, "handbook", where, hana.principal)
        with pytest.raises(ForbiddenError, match="admin"):
            set_access(bank.tenant, bank.id, "handbook", [], hana.principal)
        assert ask(Asker("admin"), "SELECT * FROM document") == before

    def test_a_role_that_was_revoked_writes_no_more(self, bank: Bank, alice: Asker) -> None:
        revoke(bank, "principal:alice")
        with pytest.raises(ForbiddenError, match="you have none"):
            store(alice, bank, "new")

    def test_a_writer_changes_no_list_but_gives_a_new_document_one(
        self, bank: Bank, alice: Asker
    ) -> None:
        store(alice, bank, "new", access=["principal:alice"])
        assert store(alice, bank, "new", "words", ["principal:alice"]).status == "changed"
        with pytest.raises(ForbiddenError, match="list"):
            store(alice, bank, "new", access=["everyone"])
        with pytest.raises(ForbiddenError, match="admin"):
            set_access(bank.tenant, bank.id, "new", ["everyone"], alice.principal)
        rows = ask(Asker("admin"), "SELECT text, access FROM document WHERE id = 'new'")
        assert rows == [("words", ["principal:alice"])]

    def test_a_writer_neither_overwrites_nor_forgets_what_it_may_not_read(
        self, bank: Bank, alice: Asker
    ) -> None:
        set_access(bank.tenant, bank.id, "handbook", ["principal:hana"])
        before = ask(Asker("admin"), "SELECT * FROM document")
        with pytest.raises(ForbiddenError, match="not yours"):
            store(alice, bank, "handbook")
        with pytest.raises(NotFoundError):
            forget(bank.tenant, "handbook", bank.id, alice.principal)
        assert ask(Asker("admin"), "SELECT * FROM document") == before

    def test_an_admin_changes_lists_and_roles(self, bank: Bank, hana: Asker) -> None:
        grant(bank, "group:hr", BankRole.ADMIN)
        set_access(bank.tenant, bank.id, "handbook", ["principal:alice"], hana.principal)
        store(hana, bank, "handbook", access=["group:hr"])
        grant(bank, "everyone", BankRole.WRITER, hana)
        revoke(bank, "everyone", hana)
        assert members(bank) == {
            "group:hr": BankRole.ADMIN,
            "principal:alice": BankRole.WRITER,
            "principal:hana": BankRole.READER,
        }

    def test_nobody_below_an_admin_changes_roles(self, bank: Bank, alice: Asker) -> None:
        with pytest.raises(ForbiddenError, match="admin"):
            grant(bank, "principal:alice", BankRole.ADMIN, alice)
        with pytest.raises(ForbiddenError, match="admin"):
            revoke(bank, "principal:hana", alice)

    def test_a_role_in_another_bank_does_not_count(
        self, bank: Bank, alice: Asker, company: Company
    ) -> None:
        other = add_bank(company.name, "other", PROFILE, "{}")
        with pytest.raises(ForbiddenError):
            store(alice, other, "new")
        with pytest.raises(ForbiddenError):
            grant(other, "everyone", BankRole.ADMIN, alice)

    def test_a_principal_of_another_tenant_writes_nothing(
        self, bank: Bank, new_company: Callable[[str], Company]
    ) -> None:
        grant(bank, "everyone", BankRole.ADMIN)
        stranger = new_company("northwind").reader("alice")
        with pytest.raises(ForbiddenError):
            store(stranger, bank, "new")

    def test_ingestion_is_by_scope_and_role(
        self, bank: Bank, alice: Asker, hana: Asker, tmp_path: Path
    ) -> None:
        (tmp_path / "a.md").write_text("# A\n\nWords.")

        def ingested(asker: Asker, *scopes: str) -> Iterator[Ingested | Failure]:
            who = Identity("harbor", "p", frozenset(scopes), asker)

            def bank_of(_: Document) -> Bank:
                return bank

            return ingest([tmp_path], bank_of, None, lambda t: len(t.split()), 1000, who)

        with pytest.raises(ForbiddenError, match="scope write"):
            next(ingested(alice, "read", "admin"))
        [failed] = ingested(hana, "write")
        assert isinstance(failed, Failure)
        assert "writer" in failed.error
        [stored] = ingested(alice, "write")
        assert isinstance(stored, Ingested)


class TestCommands:
    def test_grant_members_and_revoke(self, closed: Bank, alice: Asker) -> None:
        where = (closed.name, "--tenant", "harbor")
        run("bank", "grant", *where, "--to", "principal:alice", "--role", "reader")
        assert seen(alice) == WHOLE
        run("bank", "grant", *where, "--to", "principal:alice", "--role", "writer")
        found = run("bank", "members", *where)
        assert found == {"bank": closed.name, "members": {"principal:alice": "writer"}}
        shown = CliRunner().invoke(membank, ["bank", "members", *where]).stdout
        assert shown == "writer  principal:alice\n"
        run("bank", "revoke", *where, "--to", "principal:alice")
        assert seen(alice) == NOTHING
        assert "closed" in CliRunner().invoke(membank, ["bank", "members", *where]).stdout

    def test_a_role_that_is_none_is_refused(self, closed: Bank) -> None:
        result = CliRunner().invoke(
            membank,
            ["bank", "grant", closed.name, "--tenant", "harbor", "--to", "everyone", "--role", "x"],
        )
        assert result.exit_code == 2

    def test_allow(self, company: Company, alice: Asker, hana: Asker) -> None:
        company.store("handbook", "Hours are nine to five.")
        work_off()
        where = ("allow", "handbook", "--tenant", "harbor", "--bank", company.bank.name)
        made = run(*where, "--to", "group:hr", "--to", "principal:hana")
        assert made["access"] == ["group:hr", "principal:hana"]
        assert (seen(alice), seen(hana)) == (NOTHING, WHOLE)
        run(*where, "--nobody")
        assert seen(hana) == NOTHING
        assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(0,)]
        for wrong in ((), ("--nobody", "--to", "everyone")):
            with pytest.raises(UsageError, match="--to"):
                CliRunner().invoke(membank, [*where, *wrong], catch_exceptions=False)
        with pytest.raises(NotFoundError):
            set_access(company.tenant, company.bank.id, "nothing", [])

    def test_group_add_and_remove(self, company: Company, alice: Asker) -> None:
        company.store("salaries", "Bands.", ["group:hr"])
        work_off()
        where = ("hr", "--tenant", "harbor", "--principal", "alice")
        assert seen(alice) == NOTHING
        run("group", "add", *where)
        run("group", "add", *where)
        assert seen(alice) == WHOLE
        run("group", "remove", *where)
        assert seen(alice) == NOTHING
        assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(0,)]
        with pytest.raises(NotFoundError, match="not in group"):
            leave_group("harbor", "hr", "alice")
        with pytest.raises(NotFoundError, match="bob"):
            join_group("harbor", "hr", "bob")
