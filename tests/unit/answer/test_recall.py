"""What an answer reads: the memories that a search brought, each as strongly as it is relevant."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.answer import recall as recalling
from app.answer.recall import recall
from app.answer.retrieval import Request
from app.db.session import Asker
from app.memory.codec.pack import SIMPLE
from app.memory.encode import Encoder
from app.memory.model.adapter import Adapter
from app.memory.model.load import LanguageModel
from app.search.search import Passage
from tests.unit.memory.families import tiny

REQUEST = Request(Asker("app", 1, 1), 1, "p" * 32, SIMPLE["int8"])


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    lm = LanguageModel(tiny("llama"), tokenizer=None)
    encoder = Encoder(lm, [3, 4, 5])
    adapter = Adapter("m", "p", "memory", 1.0, 4.0, "int8", {})
    monkeypatch.setattr(recalling, "models", lambda: SimpleNamespace(lm=lm, encoder=encoder))
    monkeypatch.setattr(recalling, "adapted", lambda *_: SimpleNamespace(adapter=adapter))
    kvs = dict(enumerate(encoder.encode([[7, 8], [9, 10, 11], [12]])))
    monkeypatch.setattr(recalling, "load", lambda _, passages, __: [kvs[p.id] for p in passages])
    return encoder


def passage(number: int, score: float, relevance: float) -> Passage:
    return Passage(number, f"d{number}", "", "", "", score, relevance)


def bias_of(reading: Any, memory: int) -> float:
    """What is added to the logits of a memory's entries, the same for all of them."""
    owned = reading.owner[0] == memory
    added = reading.bias.expand(1, 1, 1, owned.shape[0])[0, 0, 0, owned]
    assert len(set(added.tolist())) == 1
    return float(added[0])


def test_a_memory_is_preferred_by_its_relevance_and_not_by_its_cosine(encoder: Encoder) -> None:
    found = [passage(0, 0.5, 1.0), passage(1, 0.9, 0.9), passage(2, 0.4, 0.4)]
    reading = recall(REQUEST, found, None)
    assert [bias_of(reading, i) for i in range(3)] == pytest.approx([0.0, -0.4, -2.4], abs=1e-6)
    prefix = reading.owner[0] < 0
    assert prefix.sum() == 3
    assert reading.bias is not None
    assert torch.equal(reading.bias[0, 0, 0, prefix], torch.zeros(3))


def test_a_memory_alone_is_read_as_it_is(encoder: Encoder) -> None:
    assert recall(REQUEST, [passage(1, 0.9, 0.2)], None).bias is None
