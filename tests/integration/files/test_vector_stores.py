"""Vector stores over HTTP, with OpenAI's client: what they are, who may, how they are searched.

Memories are invented but in the last test, which searches.
"""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import VectorStore
from sqlalchemy import Connection

from app.bank import banks
from app.bank.roles import BankRole
from app.db.session import Asker
from app.queue import outbox
from app.runtime.identity import profile
from tests.conftest import Company, ask, work_off
from tests.edges import bank_now, grant
from tests.uploads import Client, attach, encode, json_of, upload


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
        grant(bank_now(company.tenant, int(closed.id[3:])), "principal:bob", BankRole.READER)
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
        def change(connection: Connection, asker: Asker, id: int, *how: Any) -> Any:
            changed = banks.find(connection, asker, id)
            banks.remove(connection, asker, id)
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


def test_search_finds_passages_with_their_files(
    client: Client, alice: OpenAI, store: VectorStore, company: Company
) -> None:
    from app.runtime.models import models

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
