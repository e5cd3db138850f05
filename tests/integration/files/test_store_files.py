"""Files of a vector store: read by workers, what becomes of them, who may change them."""

import io
import json
import zipfile

import openai
import pytest
from openai import OpenAI
from openai.types import VectorStore

from app.bank.documents import Draft
from app.bank.roles import BankRole
from app.db.session import Asker
from app.errors import NotFoundError
from app.queue import outbox
from app.queue.jobs import State
from app.runtime.identity import profile
from app.upkeep.reconcile import reconcile
from tests import edges
from tests.conftest import Company, administer, ask, change, work_off
from tests.edges import bank_now, grant, revoke
from tests.edges import store as store_document
from tests.uploads import Client, attach, documents, encode, read_waiting, upload, waiting_file
from workers.uploads import store as read


class TestStoreFiles:
    def test_are_stored_then_encoded(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        entry = attach(alice, store, file, attributes={"team": "hr", "year": 2024, "open": True})
        assert (entry.id, entry.status, entry.last_error) == (file, "in_progress", None)
        assert entry.attributes == {"team": "hr", "year": 2024, "open": True}
        assert entry.vector_store_id == store.id
        encode()
        entry = alice.vector_stores.files.poll(file, vector_store_id=store.id)
        assert entry.status == "completed"
        assert entry.usage_bytes > 0
        asker = company.reader("alice")
        assert documents(store, asker, "metadata") == [{"team": "hr", "year": 2024, "open": True}]
        assert documents(store, asker, "source") == ["notes.md"]
        assert documents(store, asker, "title") == ["Badges"]
        [content] = alice.vector_stores.files.content(file, vector_store_id=store.id)
        assert "orange" in str(content.text)

    def test_attributes_change_without_encoding(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice, "rows.jsonl", '{"id": "a", "text": "x", "metadata": {"n": [1]}}')
        attach(alice, store, file, attributes={"team": "hr", "year": 2024})
        encode()
        entry = alice.vector_stores.files.update(
            file, vector_store_id=store.id, attributes={"team": "it"}
        )
        assert (entry.attributes, entry.status) == ({"team": "it"}, "completed")
        asker = company.reader("alice")
        assert documents(store, asker, "metadata") == [{"n": [1], "team": "it"}]
        assert ask(Asker("worker", company.tenant), "SELECT count(*) FROM outbox") == [(0,)]
        for bad in ({"a": "x" * 513}, {"a" * 65: 1}, {str(n): n for n in range(17)}, {"a": [1]}):
            with pytest.raises(openai.BadRequestError):
                alice.vector_stores.files.update(
                    file,
                    vector_store_id=store.id,
                    attributes=bad,  # type: ignore[arg-type]
                )

    def test_an_archive_is_one_file_of_many_documents(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for n in range(3):
                archive.writestr(f"folder/{n}.md", f"text number {n}")
        file = upload(alice, "many.zip", packed.getvalue())
        attach(alice, store, file)
        encode()
        assert alice.vector_stores.retrieve(store.id).file_counts.completed == 1
        asker = company.reader("alice")
        assert documents(store, asker, "source") != []
        assert sorted(documents(store, asker, "source")) == [
            f"many.zip!folder/{n}.md" for n in range(3)
        ]
        before = documents(store, asker)
        attach(alice, store, file)
        assert documents(store, asker) == before
        assert alice.vector_stores.files.retrieve(file, vector_store_id=store.id).status == (
            "completed"
        )

    @pytest.mark.parametrize(
        ("name", "content", "code", "said"),
        [
            ("broken.pdf", b"%PDF-nothing", "invalid_file", "broken.pdf"),
            ("empty.md", b" \n", "invalid_file", "empty"),
            ("tune.exe", b"MZ", "unsupported_file", "ending"),
            ("noending", b"x", "unsupported_file", "ending"),
            (".md", b"x", "unsupported_file", "ending"),
            ("bad.zip", b"PK", "invalid_file", "zip"),
            ("latin.md", "ü".encode("latin-1"), "invalid_file", "UTF-8"),
        ],
    )
    def test_what_cannot_be_read_has_failed(
        self, alice: OpenAI, store: VectorStore, name: str, content: bytes, code: str, said: str
    ) -> None:
        entry = attach(alice, store, upload(alice, name, content))
        assert entry.status == "failed"
        assert entry.last_error is not None
        assert entry.last_error.code == code
        assert said in entry.last_error.message
        assert alice.vector_stores.retrieve(store.id).file_counts.failed == 1

    def test_one_bad_row_fails_the_file_and_the_others_are_there(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        rows = [{"id": "a", "text": "one"}, {"id": "b"}, {"id": "c", "text": "three"}]
        file = upload(alice, "rows.jsonl", "\n".join(map(json.dumps, rows)))
        entry = attach(alice, store, file)
        assert entry.status == "failed"
        assert entry.last_error is not None
        assert "rows.jsonl:2" in entry.last_error.message
        assert "1 of 3" in entry.last_error.message
        assert documents(store, company.reader("alice")) == ["a", "c"]

    def test_what_workers_give_up_has_failed(self, alice: OpenAI, store: VectorStore) -> None:
        file = upload(alice)
        attach(alice, store, file)
        [work] = outbox.claim(profile().id, 10, 60.0)
        outbox.fail(work, "the model cannot", max_attempts=1)
        entry = alice.vector_stores.files.retrieve(file, vector_store_id=store.id)
        assert entry.status == "failed"
        assert entry.last_error is not None
        assert (entry.last_error.code, entry.last_error.message) == (
            "server_error",
            "the model cannot",
        )

    def test_a_bank_of_another_model_takes_no_file(self, alice: OpenAI, company: Company) -> None:
        grant(company.bank, "principal:alice", BankRole.WRITER)
        store = alice.vector_stores.retrieve(f"vs_{company.bank.id}")
        entry = attach(alice, store, upload(alice))
        assert entry.status == "failed"
        assert entry.last_error is not None
        assert entry.last_error.code == "server_error"
        assert "is encoded under profile" in entry.last_error.message

    def test_what_a_dead_worker_held_is_stored_by_another(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        files, bank = alice.vector_stores.files, int(store.id[3:])
        edges.attach(company.reader("alice"), bank, [(file, {})])
        dead = waiting_file()
        assert outbox.claim(profile().id, 10, 60.0) == []
        administer("UPDATE outbox SET lease_until = now() - interval '1 second'")
        assert read([waiting_file()]) == 1
        assert not edges.finish(dead, "too late", "server_error")
        assert encode() == 1
        assert files.retrieve(file, vector_store_id=store.id).status == "completed"

    def test_what_no_worker_can_read_has_failed_and_can_be_put_in_again(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        edges.attach(company.reader("alice"), int(store.id[3:]), [(file, {})])
        outbox.fail(waiting_file(), "MemoryError: it is too much", max_attempts=1)
        entry = alice.vector_stores.files.retrieve(file, vector_store_id=store.id)
        assert entry.status == "failed"
        assert entry.last_error is not None
        assert entry.last_error.message == "MemoryError: it is too much"
        assert ask(Asker("worker", company.tenant), "SELECT count(*) FROM outbox") == [(0,)]
        assert attach(alice, store, file).status == "in_progress"
        assert encode() == 1

    def test_what_changes_while_it_is_read_is_read_again(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file, asker = upload(alice), company.reader("alice")
        files = alice.vector_stores.files
        edges.attach(asker, int(store.id[3:]), [(file, {"n": 1})])
        early = waiting_file()
        files.update(file, vector_store_id=store.id, attributes={"n": 2})
        assert read([early]) == 0
        assert files.retrieve(file, vector_store_id=store.id).status == "in_progress"
        read_waiting()
        assert documents(store, asker, "metadata") == [{"n": 2}]
        assert encode() == 1

    def test_the_rights_are_those_of_who_put_it_there_when_it_is_read(
        self, client: Client, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        bank = bank_now(company.tenant, int(store.id[3:]))
        for name in ("bob", "eve"):
            of = client(name)
            grant(bank, f"principal:{name}", BankRole.WRITER)
            of.vector_stores.files.create(vector_store_id=store.id, file_id=upload(of))
        revoke(bank, "principal:bob")
        change(
            Asker("admin", company.tenant),
            "DELETE FROM principal WHERE tenant_id = :tenant AND name = 'eve'",
            tenant=company.tenant,
        )
        read_waiting()
        failed = ask(Asker("worker", company.tenant), "SELECT state, error FROM bank_file")
        assert {state for state, _ in failed} == {"failed"}
        assert any("who put the file here was deleted" in error for _, error in failed)
        assert documents(store, Asker("worker", company.tenant)) == []

    def test_work_on_files_is_listed_and_cancelled_as_other_work(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        ids = [upload(alice, f"{n}.md") for n in range(2)]
        asker = company.reader("alice")
        edges.attach(asker, int(store.id[3:]), [(id, {}) for id in ids])
        rows, total = edges.find_jobs(10, company.tenant, state=State.PENDING)
        assert total == 2
        assert {row["file_id"] for row in rows} == set(ids)
        assert edges.cancel(company.tenant, document=ids[0]) == 1
        assert edges.cancel(company.tenant) == 1
        assert edges.find_jobs(10, company.tenant) == ([], 0)
        files = alice.vector_stores.files
        assert [f.status for f in files.list(store.id)] == ["cancelled", "cancelled"]

    def test_reconciling_finds_files_that_nobody_was_told_of(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        worker = Asker("worker", company.tenant)
        edges.attach(company.reader("alice"), int(store.id[3:]), [(file, {})])
        change(worker, "DELETE FROM outbox")
        assert reconcile().queued_files == 1
        change(worker, "UPDATE outbox SET revision = revision")  # no orphan: it stays
        assert reconcile().queued_files == 0
        read_waiting()
        assert len(documents(store, worker)) == 1

    def test_a_file_that_is_deleted_meanwhile_is_not_stored(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        asker, bank = company.reader("alice"), int(store.id[3:])
        edges.attach(asker, bank, [(file, {})])
        alice.files.delete(file)
        with pytest.raises(NotFoundError):
            edges.attach(asker, bank, [(file, {})])
        draft = Draft("late", "late.md", "Late", "text", None, {}, file)
        with pytest.raises(NotFoundError):
            store_document(company.tenant, bank, draft, [], asker.principal)
        assert documents(store, asker) == []

    def test_documents_of_other_ways_are_listed_too(
        self, alice: OpenAI, company: Company, client: Client
    ) -> None:
        grant(company.bank, "principal:alice", BankRole.WRITER)
        store = alice.vector_stores.retrieve(f"vs_{company.bank.id}")
        name = "Größe/日本 +?&"
        company.store(name, "the text")
        company.store("secret", "for hr alone", ["group:hr"])
        [entry] = alice.vector_stores.files.list(store.id)
        assert entry.id.startswith("doc-")
        assert (entry.status, entry.attributes) == ("in_progress", {"of": company.name})
        assert alice.vector_stores.files.retrieve(entry.id, vector_store_id=store.id) == entry
        work_off()
        [content] = alice.vector_stores.files.content(entry.id, vector_store_id=store.id)
        assert content.text == "the text"
        entry = alice.vector_stores.files.update(
            entry.id, vector_store_id=store.id, attributes={"a": 1.5}
        )
        assert (entry.status, entry.attributes) == ("completed", {"a": 1.5})
        assert alice.vector_stores.retrieve(store.id).file_counts.total == 1
        assert alice.vector_stores.files.delete(entry.id, vector_store_id=store.id).deleted
        assert documents(store, company.reader("hana", "hr")) == ["secret"]
        for id in ("doc-", "doc-%", "doc-AAAA", "doc-c2VjcmV0", "doc-/w", "file-x"):
            with pytest.raises(openai.NotFoundError):
                alice.vector_stores.files.retrieve(id, vector_store_id=store.id)

    def test_are_listed_in_pages_and_by_status(self, alice: OpenAI, company: Company) -> None:
        grant(company.bank, "principal:alice", BankRole.WRITER)
        store = alice.vector_stores.create(name="mixed")
        made = [attach(alice, store, upload(alice, f"{n}.md")).id for n in range(3)]
        bad = [attach(alice, store, upload(alice, f"{n}.exe")).id for n in range(2)]
        files = alice.vector_stores.files
        assert [f.id for f in files.list(store.id, limit=2)] == [*reversed(bad), *reversed(made)]
        assert [f.id for f in files.list(store.id, filter="failed", order="asc", limit=1)] == bad
        assert [f.id for f in files.list(store.id, filter="in_progress", order="asc")] == made
        assert list(files.list(store.id, filter="completed")) == []
        encode()
        assert len(list(files.list(store.id, filter="completed"))) == 3
        page = files.list(store.id, limit=2, before=made[0])
        assert ([f.id for f in page.data], page.has_more) == ([made[2], made[1]], True)
        assert page.model_extra["first_id"] == made[2]
        with pytest.raises(openai.BadRequestError):
            files.list(store.id, after=made[0], before=made[1])

    def test_lists_of_readers_are_kept(
        self, client: Client, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        client("hana", "hr")
        file = upload(alice)
        attach(alice, store, file, extra_body={"membank": {"allow": ["group:hr"]}})
        assert documents(store, company.reader("hana")) != []
        assert documents(store, company.reader("alice")) == []
        bob, hana = client("bob"), client("hana")
        with pytest.raises(openai.NotFoundError):
            bob.vector_stores.files.retrieve(file, vector_store_id=store.id)
        assert bob.vector_stores.retrieve(store.id).file_counts.total == 0
        assert hana.vector_stores.files.retrieve(file, vector_store_id=store.id).id == file
        # Who put it there sees how far it is, and may take it away.
        assert alice.vector_stores.files.retrieve(file, vector_store_id=store.id).id == file
        for allow in (["group:nobody"], ["everybody"], ["principal:a\x00"], "everyone"):
            with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
                attach(alice, store, file, extra_body={"membank": {"allow": allow}})
        assert alice.vector_stores.files.delete(file, vector_store_id=store.id).deleted
        assert documents(store, company.reader("hana")) == []

    def test_a_writer_takes_away_only_what_it_may_read(
        self, client: Client, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        bob = client("bob")
        grant(bank_now(company.tenant, int(store.id[3:])), "principal:bob", BankRole.WRITER)
        rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "allow": ["principal:alice"]}]
        file = upload(alice, "rows.jsonl", "\n".join(map(json.dumps, rows)))
        attach(alice, store, file)
        with pytest.raises(openai.PermissionDeniedError):
            bob.vector_stores.files.delete(file, vector_store_id=store.id)
        with pytest.raises(openai.PermissionDeniedError):
            bob.vector_stores.files.update(file, vector_store_id=store.id, attributes={"a": 1})
        assert documents(store, company.reader("alice")) == ["a", "b"]
