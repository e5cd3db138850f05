"""Many answers at once: each is what it is alone, whoever comes, goes, fails or waits beside it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from app.answer.engine import Engine, Job
from app.answer.question import Question
from app.errors import UnavailableError
from app.memory.compose import Memories, compose
from app.memory.decode.flat import Start
from app.memory.decode.generate import GREEDY, Choice, Generator, Sampling, Unencoded, Wanted
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.load import LanguageModel
from tests.unit.answer.test_generate import Letters
from tests.unit.memory.families import CHUNKS, PREFIX, tiny

WEIGHTS = ["float", "int8"]


class Case:
    """A generator, an engine over it, and memories."""

    def __init__(self, family: str, weights: str, folder: Path) -> None:
        self.lm = LanguageModel(tiny(family), Letters())
        self.generator = Generator(self.lm, weights, folder)  # type: ignore[arg-type]
        self.encoder = Encoder(self.lm, PREFIX)
        self.stored = self.encoder.encode(CHUNKS)
        self.engine = Engine(most=5, model_of=lambda _: self.generator)

    def memories(self, *chunks: int) -> Memories:
        return compose([[self.stored[i] for i in chunks]], self.lm.rotary, self.encoder.prefix)

    def begin(
        self,
        prompt: list[int],
        most: int = 12,
        memories: "Memories | Unencoded | None" = None,
        sampling: Sampling = GREEDY,
        tenant: int = 1,
    ) -> Job:
        return self.engine(Question("?"), Wanted(prompt, most, memories, sampling), tenant)

    def endless(self) -> "Case":
        self.lm.__dict__["end_tokens"] = frozenset()
        return self


def text_of(job: Job) -> str:
    return "".join(job)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture
def open_case(folder: Path) -> Iterator[Callable[[str, str], Case]]:
    made: list[Case] = []

    def make(family: str = "llama", weights: str = "float") -> Case:
        made.append(Case(family, weights, folder))
        return made[-1]

    yield make
    for case in made:
        case.engine.close()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", ["llama", "gpt-oss, attention sinks"])
def test_answers_of_a_busy_engine_are_those_given_alone(
    family: str, weights: str, open_case: Callable[[str, str], Case]
) -> None:
    case = open_case(family, "auto" if family != "llama" else weights)

    def asked(i: int) -> dict[str, object]:
        unread = Unencoded(CHUNKS[i % 2], case.encoder) if i % 5 == 4 else None
        return {
            "prompt": [40 + (i + j) % 50 for j in range(1 + i % 9)],
            "max_tokens": 4 + i % 13,
            "memories": unread if i % 3 == 0 else case.memories(*range(1 + i % 2)),
            "sampling": GREEDY if i % 2 else Sampling(1.2, 0.9, seed=i),
        }

    def through_engine(i: int) -> tuple[str, list[int], int]:
        how = asked(i)
        job = case.begin(
            how["prompt"],  # type: ignore[arg-type]
            how["max_tokens"],  # type: ignore[arg-type]
            how["memories"],  # type: ignore[arg-type]
            how["sampling"],  # type: ignore[arg-type]
            tenant=i % 3,
        )
        text = text_of(job)
        said = job.generation()
        assert said.text == text
        return text, said.tokens, said.memory_entries

    with torch.inference_mode():
        alone = [case.generator.generate(**asked(i)) for i in range(24)]  # type: ignore[arg-type]
    with ThreadPoolExecutor(24) as threads:
        together = list(threads.map(through_engine, range(24)))
    assert together == [(one.text, one.tokens, one.memory_entries) for one in alone]
    assert case.engine.stats()["running"] == case.engine.stats()["waiting"] == 0


def test_a_short_answer_joins_a_long_one_and_ends_before_it(
    open_case: Callable[..., Case],
) -> None:
    case = open_case().endless()
    long = case.begin([40, 41], 4000)
    pieces = iter(long)
    next(pieces)
    assert len(case.begin([42], 3).__iter__().__next__()) > 0
    assert text_of(case.begin([43], 3)) != ""
    assert len(long.generation().tokens) < 4000
    long.cancel()
    list(pieces)


def test_who_goes_away_is_computed_no_further(open_case: Callable[..., Case]) -> None:
    case = open_case().endless()
    job, other = case.begin([40], 100_000), case.begin([41], 50)
    next(iter(job))
    job.cancel()
    assert len(text_of(other)) == 50
    before = len(job.generation().tokens)
    assert text_of(case.begin([42], 20)) != ""
    assert len(job.generation().tokens) == before < 100_000
    assert job.generation().finished is None
    assert job.reading is None


def test_a_request_that_fails_takes_nobody_with_it(open_case: Callable[..., Case]) -> None:
    case = open_case().endless()

    good = case.begin([40, 41], 30)
    bad = case.begin([40, 41], 30, Unencoded([], case.encoder))
    with pytest.raises(ValueError, match="without tokens"):
        text_of(bad)
    assert text_of(good) == case.generator.generate([40, 41], 30).text


def test_a_token_that_cannot_be_chosen_is_the_fault_of_one(
    open_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, chosen = open_case().endless(), Choice.__call__

    def choose(self: Choice, logits: torch.Tensor) -> int:
        if self._sampling.temperature == 2.0:
            raise RuntimeError("probability tensor contains nan")
        return chosen(self, logits)

    monkeypatch.setattr(Choice, "__call__", choose)
    good = case.begin([40, 41], 30)
    bad = case.begin([40, 41], 30, sampling=Sampling(2.0))
    with pytest.raises(RuntimeError, match="nan"):
        text_of(bad)
    assert text_of(good) == case.generator.generate([40, 41], 30).text
    assert case.engine.stats()["running"] == 0


def test_tenants_take_turns(
    open_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that asks thirty times keeps another waiting for no more than the next of them."""
    case = open_case().endless()
    gate, begun, start = threading.Event(), list[int](), Job.start

    class Held(Encoder):
        def encode(self, *chunks: Any, **how: Any) -> list[KV]:
            assert gate.wait(60)
            return super().encode(*chunks, **how)

    def noted(job: Job) -> Start:
        begun.append(job.tenant)
        return start(job)

    monkeypatch.setattr(Job, "start", noted)
    case.begin([40], 1, Unencoded(CHUNKS[0], Held(case.lm, [])))
    many = [case.begin([40], 5, tenant=1) for _ in range(30)]
    one = case.begin([41], 5, tenant=2)
    gate.set()
    for job in (one, *many):
        text_of(job)
    assert len(begun) == 32
    assert begun.index(2) <= 2


def test_a_closed_engine_says_so(open_case: Callable[..., Case]) -> None:
    case = open_case().endless()
    job = case.begin([40], 10**6)
    next(iter(job))
    case.engine.close()
    with pytest.raises(UnavailableError, match="is ending"):
        list(job)
    with pytest.raises(UnavailableError, match="is ending"):
        case.begin([40], 1)
