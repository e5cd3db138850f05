"""Files and vector stores over HTTP, with OpenAI's client: what comes back, who may, what is left.

Memories are invented but in the last test, which searches.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import psycopg
import pytest
from openai import OpenAI
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile

from app.access import banks
from app.access.erase import erase
from app.access.keys import issue
from app.access.members import grant, revoke
from app.access.tenants import bank_now
from app.api.service import create
from app.bank import attachments, jobs, outbox
from app.bank import files as uploaded
from app.bank.documents import Draft
from app.bank.documents import store as store_document
from app.bank.jobs import State
from app.bank.outbox import Work
from app.bank.reconcile import reconcile
from app.bank.roles import Role
from app.bank.session import Asker
from app.errors import NotFoundError
from app.runtime import profile
from app.settings import settings
from tests.conftest import PROFILE, Company, administer, ask, change, work_off
from tests.serving import served
from workers.uploads import store as read

NOTES = "# Badges\n\nThe badge of the harbor is orange.\n"


@pytest.fixture
def address(database: str) -> Iterator[str]:
    """Of the service, in a thread of this process."""

    def generates(*_: object, **__: object) -> Any:
        raise AssertionError("nobody asks here")

    with served(create(generates)) as url:
        yield f"{url}/v1"


Client = Callable[..., OpenAI]


@pytest.fixture
def client(address: str, company: Company) -> Iterator[Client]:
    """OpenAI's client of a principal, made if need be, with a key of its own."""
    with contextlib.ExitStack() as open_ones:

        def make(
            name: str, *groups: str, scopes: tuple[str, ...] = ("read", "write"), of: Any = company
        ) -> OpenAI:
            of.reader(name, *groups)
            key = issue(of.name, name, scopes=scopes).token
            made = OpenAI(base_url=address, api_key=key, max_retries=0)
            return open_ones.enter_context(made)

        yield make


@pytest.fixture
def alice(client: Client) -> OpenAI:
    return client("alice")


@pytest.fixture
def store(alice: OpenAI) -> VectorStore:
    return alice.vector_stores.create(name="notes")


def upload(client: OpenAI, name: str = "notes.md", content: str | bytes = NOTES) -> str:
    data = content.encode() if isinstance(content, str) else content
    return client.files.create(file=(name, data), purpose="assistants").id


def attach(client: OpenAI, store: VectorStore, file: str, **how: Any) -> VectorStoreFile:
    """Put a file into a bank, and store it as a worker does; no chunk is encoded."""
    files = client.vector_stores.files
    made = files.create(vector_store_id=store.id, file_id=file, **how)
    assert (made.id, made.status, made.last_error) == (file, "in_progress", None)
    read_waiting()
    return files.retrieve(file, vector_store_id=store.id)


def read_waiting() -> None:
    """Store all files that wait."""
    for each in (profile().id, PROFILE):
        work = outbox.claim(each, 1000, 60.0)
        outbox.release([one for one in work if one.file is None])
        read([one for one in work if one.file is not None])


def waiting_file() -> Work:
    """The lease of the one file that waits."""
    [work] = outbox.claim(profile().id, 10, 60.0)
    assert work.file is not None
    return work


def json_of(client: OpenAI) -> dict[str, str]:
    """Headers of a request whose body the client would not write."""
    return {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}


def encode() -> int:
    return work_off(profile=profile().id)


def documents(store: VectorStore, asker: Asker, column: str = "id") -> list[Any]:
    rows = ask(
        asker,
        f"SELECT {column} FROM document WHERE bank_id = :bank ORDER BY id",
        bank=int(store.id.removeprefix("vs_")),
    )
    return [row[0] for row in rows]


class TestFiles:
    def test_come_back_as_they_were_sent(self, alice: OpenAI) -> None:
        data = bytes(range(256)) * 5000
        made = alice.files.create(file=("notes.bin", data), purpose="user_data")
        assert made.id.startswith("file-")
        assert (made.bytes, made.filename, made.purpose) == (len(data), "notes.bin", "user_data")
        assert alice.files.retrieve(made.id) == made
        assert alice.files.content(made.id).content == data
        assert alice.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            alice.files.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            alice.files.content(made.id)

    @pytest.mark.parametrize(
        "name",
        ["../../etc/passwd.md", "/etc/shadow.md", "C:\\x\\..\\y.md", "日本語 ü.md", 'a"b;.md'],
    )
    def test_names_are_data(self, alice: OpenAI, store: VectorStore, name: str) -> None:
        file = upload(alice, name)
        found = alice.files.retrieve(file).filename
        if '"' not in name and "\\" not in name:  # which clients and forms escape in their own way
            assert found == name
        assert alice.files.content(file).text == NOTES
        assert attach(alice, store, file).status == "in_progress"
        assert alice.vector_stores.files.content(file, vector_store_id=store.id).data[0].text

    def test_are_listed_in_pages(self, alice: OpenAI) -> None:
        made = [upload(alice, f"{n}.md") for n in range(7)]
        other = alice.files.create(file=("b.jsonl", b"{}"), purpose="batch").id
        assert [file.id for file in alice.files.list(limit=3)] == [other, *reversed(made)]
        assert [file.id for file in alice.files.list(limit=2, order="asc")] == [*made, other]
        assert [file.id for file in alice.files.list(purpose="batch")] == [other]
        page = alice.files.list(limit=3, order="asc", after=made[2])
        assert ([file.id for file in page.data], page.has_more) == (made[3:6], True)
        with pytest.raises(openai.BadRequestError, match="nothing in this list"):
            alice.files.list(after="file-of-nobody")

    def test_too_large_ones_are_refused(
        self, alice: OpenAI, monkeypatch: pytest.MonkeyPatch, address: str
    ) -> None:
        monkeypatch.setenv("MEMBANK_MAX_UPLOAD_BYTES", "1000")
        settings.cache_clear()
        upload(alice, content=b"x" * 1000)
        with pytest.raises(openai.APIStatusError) as refused:
            upload(alice, content=b"x" * 1001)
        assert refused.value.status_code == 413
        assert refused.value.code == "request_too_large"
        assert len(alice.files.list().data) == 1

    def test_no_more_is_read_than_may_be_sent(self, address: str, alice: OpenAI) -> None:
        most = settings().max_upload_bytes + 1_000_000

        def endless() -> Iterator[bytes]:
            yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(most // 1_000_000 + 1):
                yield b"0" * 1_000_000

        headers = {
            "authorization": f"Bearer {alice.api_key}",
            "content-type": "multipart/form-data; boundary=x",
        }
        answer = httpx.post(f"{address}/files", content=endless(), headers=headers, timeout=60)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"

    def test_bad_forms_are_named(self, address: str, alice: OpenAI) -> None:
        headers = {"authorization": f"Bearer {alice.api_key}"}
        purpose, file = {"purpose": "assistants"}, {"file": ("a.md", b"x")}
        for form in (
            {"data": purpose},
            {"files": file},
            {"files": file, "data": {"purpose": "world domination"}},
            {"files": {"file": ("", b"x")}, "data": purpose},
            {"files": file, "data": purpose | {"expires_after[seconds]": "3600"}},
            {"content": b"{}", "headers": {"content-type": "application/json"}},
            {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        ):
            answer = httpx.post(
                f"{address}/files", **form | {"headers": headers | form.get("headers", {})}
            )
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert httpx.post(f"{address}/files", files=file, data=purpose).status_code == 401

    def test_are_for_their_uploader_and_administrators(
        self, client: Client, alice: OpenAI, new_company: Callable[[str], Company]
    ) -> None:
        file = upload(alice)
        bob, root = client("bob"), client("root", scopes=("read", "write", "admin"))
        stranger = client("alice", of=new_company("north"), scopes=("read", "write", "admin"))
        assert [f.id for f in root.files.list()] == [file]
        assert root.files.content(file).text == NOTES
        for other in (bob, stranger):
            assert list(other.files.list()) == []
            for attempt in (other.files.retrieve, other.files.content, other.files.delete):
                with pytest.raises(openai.NotFoundError):
                    attempt(file)
        reader = client("alice", scopes=("read",))
        with pytest.raises(openai.PermissionDeniedError):
            reader.files.delete(file)
        assert root.files.delete(file).deleted


class TestStores:
    def test_are_banks(self, alice: OpenAI, company: Company) -> None:
        made = alice.vector_stores.create(name="notes", metadata={"team": "hr"})
        assert (made.name, made.metadata, made.status) == ("notes", {"team": "hr"}, "completed")
        assert made.file_counts.total == made.usage_bytes == 0
        bank = bank_now(company.tenant, int(made.id.removeprefix("vs_")))
        assert (bank.name, bank.profile) == ("notes", profile().id)
        changed = alice.vector_stores.update(made.id, name="new notes")
        assert (changed.name, changed.metadata) == ("new notes", {"team": "hr"})
        assert alice.vector_stores.update(made.id, metadata={}).metadata == {}
        assert alice.vector_stores.retrieve(made.id).name == "new notes"
        assert alice.vector_stores.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            alice.vector_stores.retrieve(made.id)

    def test_one_without_a_name_gets_one_and_no_two_have_the_same(self, alice: OpenAI) -> None:
        assert alice.vector_stores.create().name != alice.vector_stores.create().name
        alice.vector_stores.create(name="notes")
        second = alice.vector_stores.create(name="others")
        with pytest.raises(openai.ConflictError):
            alice.vector_stores.create(name="notes")
        with pytest.raises(openai.ConflictError):
            alice.vector_stores.update(second.id, name="notes")

    def test_are_listed_in_pages_both_ways(self, alice: OpenAI, company: Company) -> None:
        made = [alice.vector_stores.create(name=f"n{n}").id for n in range(5)]
        everything = [*reversed(made), f"vs_{company.bank.id}"]
        assert [each.id for each in alice.vector_stores.list(limit=2)] == everything
        page = alice.vector_stores.list(limit=2, before=everything[4])
        assert ([each.id for each in page.data], page.has_more) == (everything[2:4], True)
        page = alice.vector_stores.list(limit=2, order="asc", after=made[2])
        assert ([each.id for each in page.data], page.has_more) == (made[3:], False)

    def test_say_how_far_they_are(self, alice: OpenAI, store: VectorStore) -> None:
        attach(alice, store, upload(alice))
        now = alice.vector_stores.retrieve(store.id)
        assert (now.status, now.file_counts.in_progress, now.file_counts.total) == (
            "in_progress",
            1,
            1,
        )
        progress = now.model_extra["membank"]
        assert (progress["pending"], progress["ready"], progress["coverage"]) == (1, 0, 0)
        [work] = outbox.claim(profile().id, 10, 60.0)
        progress = alice.vector_stores.retrieve(store.id).model_extra["membank"]
        assert (progress["pending"], progress["encoding"]) == (0, 1)
        outbox.release([work])
        assert encode() == 1
        now = alice.vector_stores.retrieve(store.id)
        assert (now.status, now.file_counts.completed) == ("completed", 1)
        assert now.usage_bytes > 0
        progress = now.model_extra["membank"]
        assert (progress["pending"], progress["ready"], progress["coverage"]) == (0, 1, 1)
        assert progress["throughput"] > 0

    def test_closed_ones_are_for_members(
        self, client: Client, alice: OpenAI, company: Company
    ) -> None:
        closed = alice.vector_stores.create(name="c", extra_body={"membank": {"closed": True}})
        file = upload(alice)
        attach(alice, closed, file)
        bob = client("bob")
        for attempt in (bob.vector_stores.retrieve, bob.vector_stores.files.list):
            with pytest.raises(openai.NotFoundError):
                attempt(closed.id)
        assert closed.id not in [each.id for each in bob.vector_stores.list()]
        with pytest.raises(openai.NotFoundError):
            bob.vector_stores.files.retrieve(file, vector_store_id=closed.id)
        grant(bank_now(company.tenant, int(closed.id[3:])), "principal:bob", Role.READER)
        assert bob.vector_stores.files.retrieve(file, vector_store_id=closed.id).id == file

    def test_readers_change_nothing_and_strangers_see_nothing(
        self,
        client: Client,
        alice: OpenAI,
        store: VectorStore,
        new_company: Callable[[str], Company],
    ) -> None:
        file = upload(alice)
        attach(alice, store, file)
        batch = alice.vector_stores.file_batches.create(store.id, file_ids=[file]).id
        stranger = client("alice", of=new_company("north"), scopes=("read", "write", "admin"))
        bob = client("bob")
        mine, of = upload(bob), {"vector_store_id": store.id}
        changes: tuple[Callable[[OpenAI], object], ...] = (
            lambda who: who.vector_stores.update(store.id, name="x"),
            lambda who: who.vector_stores.delete(store.id),
            lambda who: attach(who, store, mine),
            lambda who: who.vector_stores.files.delete(file, **of),
            lambda who: who.vector_stores.files.update(file, attributes={}, **of),
            lambda who: who.vector_stores.file_batches.create(file_ids=[mine], **of),
            lambda who: who.vector_stores.file_batches.cancel(batch, **of),
        )
        for attempt in changes:
            with pytest.raises(openai.PermissionDeniedError):
                attempt(bob)
            with pytest.raises(openai.NotFoundError):
                attempt(stranger)
        for attempt in (
            lambda: stranger.vector_stores.retrieve(store.id),
            lambda: stranger.vector_stores.files.list(store.id),
            lambda: stranger.vector_stores.search(store.id, query="badge"),
            lambda: stranger.vector_stores.file_batches.retrieve(batch, vector_store_id=store.id),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
        assert bob.vector_stores.files.retrieve(file, vector_store_id=store.id).id == file

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("vector_stores", {"name": "HALF"}),
            ("vector_stores", {"metadata": {"a": "HALF"}}),
            ("vector_stores", {"metadata": {"HALF": "a"}}),
            ("vector_stores", {"file_ids": ["HALF"]}),
            ("vector_stores/STORE/files", {"file_id": "HALF"}),
            ("vector_stores/STORE/files", {"file_id": "FILE", "attributes": {"a": "HALF"}}),
            ("vector_stores/STORE/files", {"file_id": "FILE", "attributes": {"HALF": 1}}),
            ("vector_stores/STORE/files", {"file_id": "FILE", "membank": {"allow": ["HALF"]}}),
            ("vector_stores/STORE/files/FILE", {"attributes": {"a": "HALF"}}),
            ("vector_stores/STORE/file_batches", {"file_ids": ["HALF"]}),
            ("vector_stores/STORE/search", {"query": ["a", "HALF"]}),
        ],
    )
    def test_half_a_character_is_refused_wherever_text_is(
        self, alice: OpenAI, store: VectorStore, address: str, path: str, body: dict[str, Any]
    ) -> None:
        file = upload(alice)
        attach(alice, store, file)
        path = path.replace("STORE", store.id).replace("FILE", file)
        content = json.dumps(body).replace("FILE", file)
        for half in ("\\ud800", "\\udfff"):
            said = content.replace("HALF", half)
            answer = httpx.post(f"{address}/{path}", content=said, headers=json_of(alice))
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"]

    def test_one_that_is_deleted_meanwhile_is_not_found(
        self, alice: OpenAI, store: VectorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def change(asker: Asker, id: int, *how: Any) -> Any:
            changed = banks.find(asker, id)
            banks.remove(asker, id)
            return changed

        monkeypatch.setattr(banks, "change", change)
        with pytest.raises(openai.NotFoundError):
            alice.vector_stores.update(store.id, name="other")

    @pytest.mark.parametrize("path", ["files?purpose=%00", "files?after=%00", "vector_stores/"])
    def test_no_list_fails_at_what_it_is_asked_for(
        self, alice: OpenAI, address: str, path: str
    ) -> None:
        answer = httpx.get(f"{address}/{path}", headers=json_of(alice))
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["error"]["message"]

    def test_what_cannot_be_done_is_refused(self, alice: OpenAI, address: str) -> None:
        for how in (
            {"expires_after": {"anchor": "last_active_at", "days": 1}},
            {"extra_body": {"membank": {"colour": "red"}}},
            {"name": "a\x00b"},
            {"name": ""},
            {"metadata": {"a\x00": "b"}},
            {"metadata": {str(n): "b" for n in range(17)}},
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0},
                }
            },
        ):
            with pytest.raises(openai.BadRequestError):
                alice.vector_stores.create(**how)
        for id in ("vs_", "vs_x", "vs_99999999999999999999", "notes", "vs_1%00", "%ff"):
            with pytest.raises(openai.NotFoundError):
                alice.vector_stores.retrieve(id)
        headers = json_of(alice)
        for body in ('{"name": "\\ud800"}', "[" * 100_000, "NaN", '{"metadata": {"a": NaN}}'):
            answer = httpx.post(f"{address}/vector_stores", content=body, headers=headers)
            assert answer.status_code == 400, answer.text
        for query in (
            "limit=0",
            "limit=-5",
            "limit=999999999999999999999",
            "order=up",
            "before=x%00",
        ):
            answer = httpx.get(f"{address}/vector_stores?{query}", headers=headers)
            assert answer.status_code == 400, answer.text


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
        grant(company.bank, "principal:alice", Role.WRITER)
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
        attachments.attach(company.reader("alice"), bank, [(file, {})])
        dead = waiting_file()
        assert outbox.claim(profile().id, 10, 60.0) == []
        administer("UPDATE outbox SET lease_until = now() - interval '1 second'")
        assert read([waiting_file()]) == 1
        assert not attachments.finish(dead, "too late", "server_error")
        assert encode() == 1
        assert files.retrieve(file, vector_store_id=store.id).status == "completed"

    def test_what_no_worker_can_read_has_failed_and_can_be_put_in_again(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        attachments.attach(company.reader("alice"), int(store.id[3:]), [(file, {})])
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
        attachments.attach(asker, int(store.id[3:]), [(file, {"n": 1})])
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
            grant(bank, f"principal:{name}", Role.WRITER)
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
        attachments.attach(asker, int(store.id[3:]), [(id, {}) for id in ids])
        rows, total = jobs.find(10, company.tenant, state=State.PENDING)
        assert total == 2
        assert {row["file_id"] for row in rows} == set(ids)
        assert jobs.cancel(company.tenant, document=ids[0]) == 1
        assert jobs.cancel(company.tenant) == 1
        assert jobs.find(10, company.tenant) == ([], 0)
        files = alice.vector_stores.files
        assert [f.status for f in files.list(store.id)] == ["cancelled", "cancelled"]

    def test_reconciling_finds_files_that_nobody_was_told_of(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        file = upload(alice)
        worker = Asker("worker", company.tenant)
        attachments.attach(company.reader("alice"), int(store.id[3:]), [(file, {})])
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
        [known] = uploaded.find(asker, [file])
        attachments.attach(asker, bank, [(file, {})])
        alice.files.delete(file)
        with pytest.raises(NotFoundError):
            attachments.attach(asker, bank, [(file, {})])
        draft = Draft("late", "late.md", "Late", "text", None, {}, known.id)
        with pytest.raises(NotFoundError):
            store_document(company.tenant, bank, draft, [], asker.principal)
        assert documents(store, asker) == []

    def test_what_is_sent_twice_under_one_key_is_done_once(
        self, alice: OpenAI, store: VectorStore
    ) -> None:
        again = {"extra_headers": {"Idempotency-Key": "once"}}
        one, two = (alice.vector_stores.create(**again) for _ in range(2))
        assert one.id == two.id

    def test_documents_of_other_ways_are_listed_too(
        self, alice: OpenAI, company: Company, client: Client
    ) -> None:
        grant(company.bank, "principal:alice", Role.WRITER)
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
        grant(company.bank, "principal:alice", Role.WRITER)
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
        grant(bank_now(company.tenant, int(store.id[3:])), "principal:bob", Role.WRITER)
        rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "allow": ["principal:alice"]}]
        file = upload(alice, "rows.jsonl", "\n".join(map(json.dumps, rows)))
        attach(alice, store, file)
        with pytest.raises(openai.PermissionDeniedError):
            bob.vector_stores.files.delete(file, vector_store_id=store.id)
        with pytest.raises(openai.PermissionDeniedError):
            bob.vector_stores.files.update(file, vector_store_id=store.id, attributes={"a": 1})
        assert documents(store, company.reader("alice")) == ["a", "b"]


class TestForgetting:
    def traces(self, superuser: psycopg.Connection) -> dict[str, int]:
        tables = ("document", "chunk", "memory_key", "memory_blob", "outbox", "bank_file", "file")
        counts = {}
        for table in tables:
            [[counts[table]]] = superuser.execute(f"SELECT count(*) FROM {table}").fetchall()
        return counts

    def test_a_detached_file_leaves_nothing_in_the_bank(
        self, alice: OpenAI, store: VectorStore, superuser: psycopg.Connection
    ) -> None:
        file = upload(alice)
        attach(alice, store, file)
        encode()
        alice.vector_stores.files.delete(file, vector_store_id=store.id)
        left = self.traces(superuser)
        assert left.pop("file") == 1
        assert set(left.values()) == {0}
        with pytest.raises(openai.NotFoundError):
            alice.vector_stores.files.retrieve(file, vector_store_id=store.id)
        assert list(alice.vector_stores.files.list(store.id)) == []

    def test_a_deleted_file_leaves_nothing_anywhere(
        self, alice: OpenAI, store: VectorStore, superuser: psycopg.Connection
    ) -> None:
        file = upload(alice)
        attach(alice, store, file)
        encode()
        attach(alice, alice.vector_stores.create(name="second"), file)
        alice.files.delete(file)
        assert set(self.traces(superuser).values()) == {0}

    def test_a_deleted_store_leaves_its_files(
        self, alice: OpenAI, store: VectorStore, superuser: psycopg.Connection
    ) -> None:
        attach(alice, store, upload(alice))
        encode()
        alice.vector_stores.delete(store.id)
        left = self.traces(superuser)
        assert left.pop("file") == 1
        assert set(left.values()) == {0}

    def test_who_is_no_writer_any_more_does_not_delete_by_the_file(
        self, client: Client, alice: OpenAI, company: Company
    ) -> None:
        root = client("root", scopes=("read", "write", "admin"))
        store = root.vector_stores.create(name="roots")
        bank = bank_now(company.tenant, int(store.id[3:]))
        grant(bank, "principal:alice", Role.WRITER)
        file = upload(alice)
        attach(alice, store, file)
        revoke(bank, "principal:alice")
        with pytest.raises(openai.PermissionDeniedError):
            alice.files.delete(file)
        assert root.files.delete(file).deleted
        assert documents(store, company.reader("alice")) == []

    def test_an_erased_tenant_leaves_none(
        self, alice: OpenAI, store: VectorStore, company: Company, superuser: psycopg.Connection
    ) -> None:
        attach(alice, store, upload(alice))
        encode()
        receipt = erase(company.name)
        assert (receipt["rows"]["file"], receipt["rows"]["bank_file"]) == (1, 1)
        assert set(self.traces(superuser).values()) == {0}


class TestBatches:
    def test_many_files_at_once(self, alice: OpenAI, store: VectorStore) -> None:
        files = [upload(alice, f"{n}.md") for n in range(3)] + [upload(alice, "x.exe")]
        batch = alice.vector_stores.file_batches.create(
            store.id, file_ids=[*files, files[0]], attributes={"team": "hr"}
        )
        assert batch.id.startswith("vsfb_")
        assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 4)
        read_waiting()
        batch = alice.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
        assert (batch.file_counts.in_progress, batch.file_counts.failed) == (3, 1)
        encode()
        done = alice.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id)
        counts = done.file_counts
        assert (done.status, counts.completed, counts.failed) == ("completed", 3, 1)
        listed = alice.vector_stores.file_batches.list_files(
            batch.id, vector_store_id=store.id, limit=2
        )
        assert {f.id for f in listed} == set(files)
        assert all(f.attributes == {"team": "hr"} for f in listed)

    def test_each_file_with_its_own_attributes(self, alice: OpenAI, store: VectorStore) -> None:
        one, two = upload(alice, "1.md"), upload(alice, "2.md")
        alice.vector_stores.file_batches.create(
            store.id, files=[{"file_id": one, "attributes": {"n": 1}}, {"file_id": two}]
        )
        found = {f.id: f.attributes for f in alice.vector_stores.files.list(store.id)}
        assert found == {one: {"n": 1}, two: {}}

    def test_a_cancelled_one_is_encoded_no_further(self, alice: OpenAI, store: VectorStore) -> None:
        files = [upload(alice, f"{n}.md", f"text {n}") for n in range(3)]
        batch = alice.vector_stores.file_batches.create(store.id, file_ids=files)
        read_waiting()
        [held] = outbox.claim(profile().id, 1, 60.0)
        now = alice.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
        assert (now.file_counts.cancelled, now.file_counts.in_progress) == (2, 1)
        outbox.release([held])
        assert encode() == 1
        now = alice.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
        assert (now.status, now.file_counts.completed) == ("cancelled", 1)

    def test_a_cancelled_one_is_not_even_read(
        self, alice: OpenAI, store: VectorStore, company: Company
    ) -> None:
        files = [upload(alice, f"{n}.md", f"text {n}") for n in range(3)]
        batch = alice.vector_stores.file_batches.create(store.id, file_ids=files)
        held = outbox.claim(profile().id, 10, 60.0)
        now = alice.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
        assert (now.status, now.file_counts.cancelled) == ("cancelled", 3)
        assert read(held) == encode() == 0
        assert documents(store, company.reader("alice")) == []

    def test_wrong_ones_are_refused_whole(self, alice: OpenAI, store: VectorStore) -> None:
        batches = alice.vector_stores.file_batches
        file = upload(alice)
        with pytest.raises(openai.NotFoundError):
            batches.create(store.id, file_ids=[file, "file-of-nobody"])
        for how in ({}, {"file_ids": []}, {"file_ids": [file], "files": [{"file_id": file}]}):
            with pytest.raises(openai.BadRequestError):
                batches.create(store.id, **how)
        with pytest.raises(openai.NotFoundError):
            batches.retrieve("vsfb_x", vector_store_id=store.id)
        assert list(alice.vector_stores.files.list(store.id)) == []


def test_search_finds_passages_with_their_files(
    client: Client, alice: OpenAI, store: VectorStore, company: Company
) -> None:
    from app.runtime import models

    texts = {
        "badge.md": "The badge of the harbor is orange.",
        "lunch.md": "Lunch is served at noon.",
        "pay.md": "Pay day is the last Friday.",
    }
    ids = {
        name: attach(
            alice,
            store,
            upload(alice, name, text),
            attributes={"name": name, "size": len(text)},
            extra_body={"membank": {"allow": ["principal:alice"]} if name == "pay.md" else {}},
        ).id
        for name, text in texts.items()
    }
    chunks = [row[0] for row in ask(Asker("worker", company.tenant), "SELECT text FROM chunk")]
    vectors = zip(chunks, models().embedder.embed(chunks), strict=True)
    assert work_off({text: v.tolist() for text, v in vectors}, profile().id) == 3

    def search(who: OpenAI = alice, **how: Any) -> list[str]:
        return [r.filename for r in who.vector_stores.search(store.id, **how)]

    page = alice.vector_stores.search(store.id, query="What colour has the badge?")
    first = page.data[0]
    assert (first.file_id, first.filename) == (ids["badge.md"], "badge.md")
    assert first.content[0].text.endswith(texts["badge.md"])
    assert first.attributes == {"name": "badge.md", "size": len(texts["badge.md"])}
    assert 0.3 < first.score <= 1
    place = first.model_extra["membank"]
    assert texts["badge.md"][place["start"] : place["end"]] == texts["badge.md"]
    assert len(page.data) == 3
    assert search(query=["lunch time", "salary"], max_num_results=2) == ["lunch.md", "pay.md"]
    assert search(query="x", filters={"type": "eq", "key": "name", "value": "pay.md"}) == ["pay.md"]
    assert set(search(query="x", filters={"type": "ne", "key": "name", "value": "pay.md"})) == {
        "badge.md",
        "lunch.md",
    }
    assert search(
        query="x", filters={"type": "nin", "key": "name", "value": ["pay.md", "lunch.md"]}
    ) == ["badge.md"]
    assert search(query="badge colour", ranking_options={"score_threshold": 0.99}) == []
    bob = client("bob")
    assert "pay.md" not in search(bob, query="When is pay day?")
    for filters in (
        {"type": "eq", "key": "nosuch", "value": 1},
        {"type": "like", "key": "name", "value": "x"},
        {"type": "eq", "key": "name", "value": "x", "else": 1},
    ):
        with pytest.raises(openai.UnprocessableEntityError):
            search(query="x", filters=filters)
    headers = json_of(alice)
    deep = "[" * 900 + "]" * 900
    for written in (f'"type": {deep}', '"type": "eq", "key": "name", "value": "x", "\\ud800": 1'):
        answer = httpx.post(
            f"{alice.base_url}vector_stores/{store.id}/search",
            content=f'{{"query": "x", "filters": {{{written}}}}}',
            headers=headers,
        )
        assert answer.status_code == 422, answer.text
    for how in (
        {"query": ""},
        {"query": []},
        {"query": " "},
        {"query": "x", "max_num_results": 51},
        {"query": "x", "ranking_options": {"score_threshold": 2}},
    ):
        with pytest.raises(openai.BadRequestError):
            search(**how)
