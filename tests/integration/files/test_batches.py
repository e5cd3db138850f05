"""Many files into a vector store in one call."""

import openai
import pytest
from openai import OpenAI
from openai.types import VectorStore

from app.queue import outbox
from app.runtime.identity import profile
from tests.conftest import Company
from tests.uploads import documents, encode, read_waiting, upload
from workers.uploads import store as read


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
