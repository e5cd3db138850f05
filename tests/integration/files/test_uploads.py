"""Files over HTTP, with OpenAI's client: what comes back, who may, what is left when they go."""

from collections.abc import Callable, Iterator

import httpx
import openai
import psycopg
import pytest
from openai import OpenAI
from openai.types import VectorStore

from app.bank.roles import BankRole
from app.settings import settings
from app.upkeep.erase import erase
from tests.conftest import Company
from tests.edges import bank_now, grant, revoke
from tests.uploads import NOTES, Client, attach, documents, encode, upload


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
        with pytest.raises(openai.BadRequestError, match="not the id of an item in this list"):
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
        grant(bank, "principal:alice", BankRole.WRITER)
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
