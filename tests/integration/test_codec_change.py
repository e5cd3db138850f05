"""A reader goes on over a change of codec and compaction, with the settings that it began with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from app.answer import recall, retrieval
from app.answer.ask import ask
from app.answer.retrieval import Reader
from app.errors import ProfileError
from app.memory.codec.pack import SIMPLE, check
from app.queue import outbox
from app.runtime import models as loaded
from app.runtime.identity import codec_name, compactor, profile
from app.runtime.models import models
from app.settings import settings
from tests import edges
from tests.conftest import Company, administer
from tests.conftest import ask as rows_of
from tests.edges import add_bank, add_tenant
from workers import encoding

QUESTION = "What colour is the badge of a visitor?"


@contextmanager
def process(monkeypatch: pytest.MonkeyPatch, **chosen: str) -> Iterator[None]:
    """Another process of the same models: nothing of the settings is remembered."""
    cached = (
        *(settings, profile, codec_name, compactor, models),
        *(loaded._adapted, loaded._generator, loaded.codec, loaded._codec_recorded),
    )
    with monkeypatch.context() as patch:
        patch.setenv("MEMBANK_DTYPE", "float32")
        patch.setenv("MEMBANK_ADAPTER", "none")
        patch.setenv("MEMBANK_WEIGHTS", "float")
        for name, value in chosen.items():
            patch.setenv(f"MEMBANK_{name.upper()}", value)
        for one in cached:
            one.cache_clear()
        try:
            yield
        finally:
            for one in cached:
                one.cache_clear()


def work_off() -> int:
    return encoding.encode(outbox.claim(profile().id, 100, 60.0))


def test_a_reader_goes_on_over_a_change_of_codec_and_compaction(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(monkeypatch, codec="int8"):
        add_tenant("harbor")
        company = Company("harbor", add_bank("harbor", "handbook", profile().id, profile().json()))
        company.store("rules", "Visitors wear an orange badge.\n\nThe gate opens at seven.")
        assert work_off() == 2
    with process(monkeypatch, codec="rotated4", compaction="reconstruction:0.5+match"):
        new = profile()
        edges.begin(company.tenant, company.bank.id, new.id, new.json())
        assert work_off() == 2
    with process(monkeypatch, codec="int8"):
        company.reader("alice")
        reader = Reader.of("harbor", "handbook", "alice")
        before = ask(reader, QUESTION, k=1)
        begun = reader.begin()
        found = retrieval.found_for(begun, QUESTION, 1, -1.0).passages

        # The switch falls between the search and the load of one answer.
        load = recall.load

        def switched(*arguments: object) -> object:
            assert len(edges.switch()) == 1
            monkeypatch.setattr(recall, "load", load)
            return load(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(recall, "load", switched)
        assert ask(reader, QUESTION, k=1).answer == before.answer

        now = reader.begin()
        assert (begun.codec.name, now.codec.name) == ("int8", "rotated4")
        (kv,) = retrieval.load(now, found, models().lm.dtype)
        (old,) = retrieval.load(begun, found, models().lm.dtype)
        assert kv.entries == -(-old.entries // 2)
        assert [p.id for p in retrieval.find(reader, QUESTION, 1).passages] == [found[0].id]
        answer = ask(reader, QUESTION, k=1)
        assert answer.usage["memory_tokens"] < before.usage["memory_tokens"]
        [(payload,)] = rows_of(
            company.reader("alice"),
            "SELECT payload FROM memory_blob WHERE chunk_id = :c AND profile_id = :p",
            c=found[0].id,
            p=new.id,
        )
        check(payload, new.id, SIMPLE["rotated4"])


def test_a_reader_of_another_model_is_told_what_it_needs(
    database: str, new_company: Callable[[str], Company], superuser: psycopg.Connection
) -> None:
    company = new_company("quay")
    company.reader("alice")
    administer(
        "UPDATE encoder_profile SET spec = cast(:spec AS jsonb)",
        spec=profile().json().replace(profile().model, "f" * 64),
    )
    with pytest.raises(ProfileError, match="another model: set MEMBANK_MODEL as in the bank"):
        Reader.of("quay", "handbook", "alice").begin()
