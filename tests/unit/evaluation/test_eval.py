"""`membank eval` on tiny models: all modes, the same numbers again, and where it left off."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.errors import EvaluationError, UsageError
from app.evaluation import command
from app.evaluation.abstention import ABSTENTION
from app.evaluation.report import Report
from app.evaluation.results import Answered, Results
from app.memory.codec.pack import SIMPLE
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from app.memory.model.prompt import Prompt
from app.runtime.models import Reading
from tests.unit.memory.families import tiny
from tests.unit.training.conftest import Words, one_thread, rows_of, vectors, written

__all__ = ["one_thread"]


class Embedder:
    def embed(self, texts: Sequence[str]) -> Tensor:
        return vectors(list(texts))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    lm = LanguageModel(tiny("llama"), Words())
    prompt = Prompt.of(lm.tokenizer)
    m = SimpleNamespace(
        lm=lm,
        encoder=Encoder(lm, prompt.prefix),
        prompt=prompt,
        embedder=Embedder(),
        codec=SIMPLE["int8"],
        profile=SimpleNamespace(id="profile", model="m" * 64, embedder="e", prefix="p"),
    )
    monkeypatch.setattr(command, "models", lambda: m)
    monkeypatch.setattr(command, "reading", lambda mode, choice: Reading(lm, None))
    monkeypatch.setattr(command, "count_tokens", lambda text: len(text.split()))
    monkeypatch.setattr(command, "cache", lambda: tmp_path / "cache")
    return m


def file_of(tmp_path: Path) -> Path:
    nothing = {"id": "none", "answers": [], "gold": [], "answerable": False}
    return written(tmp_path / "q.jsonl", [*rows_of(8), rows_of(9)[8] | nothing])


PLAN = command.Plan(ks=(1, 3), max_tokens=3)


def test_every_mode_answers_every_question(models: Any, tmp_path: Path) -> None:
    report, value = command.run(file_of(tmp_path), PLAN, out=tmp_path / "out")
    assert (value["n"], value["answerable"]) == (9, 8)
    assert set(value["modes"]) == {"memory", "rag", "closed"}
    for mode in value["modes"].values():
        assert {"contains", "f1", "exact", "recall_at_k", "first_token_ms_p50"} <= set(mode)
    assert [score["k"] for score in value["modes"]["memory"]["by_k"]] == [1, 3]
    assert "k=1" in value["memory_less_rag"]
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        *("answers.jsonl", "eval.json", "eval.md", "eval.svg")
    }
    json.dumps(value)
    assert len(report.scores) == 5


def test_one_memory_answers_as_its_text_does(models: Any, tmp_path: Path) -> None:
    plan = command.Plan(("memory", "rag"), (1,), max_tokens=3)
    command.run(file_of(tmp_path), plan, out=tmp_path / "out")
    rows = [json.loads(s) for s in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    said = {
        mode: {r["id"]: r["answer"] for r in rows[1:] if r["mode"] == mode}
        for mode in ("memory", "rag")
    }
    same = sum(said["memory"][i] == said["rag"][i] for i in said["rag"])
    assert same >= 8  # int8 may turn one


def test_a_run_goes_on_where_it_was_cut_off(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path)
    _, whole = command.run(file, PLAN, out=tmp_path / "whole")
    command.run(file, PLAN, out=tmp_path / "cut")
    answers = tmp_path / "cut" / "answers.jsonl"
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join(lines[:12]) + '\n{"mode": "mem')
    _, resumed = command.run(file, PLAN, out=tmp_path / "cut")
    for value in (whole, resumed):
        for mode in value["modes"].values():
            del mode["first_token_ms_p50"]
    assert resumed == whole
    assert sorted(answers.read_text().splitlines()) == sorted(lines)


def test_own_passages_are_searched_where_it_is_asked_for(models: Any, tmp_path: Path) -> None:
    plan = command.Plan(("memory",), (3,), max_tokens=2, gold=True)
    _, value = command.run(file_of(tmp_path), plan)
    assert value["modes"]["memory"]["recall_at_k"] == 1.0


def test_a_corpus_is_searched_and_near_duplicates_count(models: Any, tmp_path: Path) -> None:
    rows = rows_of(8)
    twin = {"id": "twin", "title": "", "text": rows[1]["question"]}
    corpus = written(tmp_path / "corpus.jsonl", [twin])
    file = written(tmp_path / "q.jsonl", [rows[1]])
    plan = command.Plan(("memory",), (1,), max_tokens=2)
    assert command.run(file, plan, corpus)[1]["modes"]["memory"]["recall_at_k"] == 0.0
    (tmp_path / "corpus_dups.json").write_text(json.dumps([["p1", "twin"]]))
    assert command.run(file, plan, corpus)[1]["modes"]["memory"]["recall_at_k"] == 1.0


def test_answers_of_another_evaluation_are_not_taken(models: Any, tmp_path: Path) -> None:
    file = file_of(tmp_path)
    command.run(file, PLAN, out=tmp_path / "out")
    with pytest.raises(EvaluationError, match="its max_tokens differ"):
        command.run(file, command.Plan(ks=(1, 3), max_tokens=4), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"ks": (0,)}, "-k is 0"), ({"modes": ("text",)}, "'text'"), ({"n": 0}, "-n is 0")],
)
def test_plans_that_cannot_be_are_refused(wrong: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        command.Plan(**wrong)


def test_more_questions_than_there_are_is_refused(models: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds 9 questions, -n asks for 10"):
        command.run(file_of(tmp_path), command.Plan(n=10))


def answered(mode: str, number: int, f1: float, answer: str = "x", ok: bool = True) -> Answered:
    abstained = answer == ABSTENTION
    return Answered(mode, 5, f"q{number}", answer, f1, f1, f1, f1, abstained, ok)  # type: ignore[arg-type]


def test_a_report_pairs_the_modes_and_rates_abstention() -> None:
    memory = [answered("memory", i, 1.0) for i in range(4)]
    memory += [answered("memory", 4, 0.0, ABSTENTION), answered("memory", 5, 0.0, "x", ok=False)]
    rag = [answered("rag", i, 0.5) for i in range(5)]
    rag += [answered("rag", 5, 0.0, ABSTENTION, ok=False)]
    report = Report.of("f", {("memory", 5): memory, ("rag", 5): rag})
    value = report.json({"memory": 1.0, "rag": 2.0})
    assert value["modes"]["memory"]["f1"] == 0.8
    assert value["modes"]["memory"]["abstained_wrongly"] == 0.2
    assert value["modes"]["memory"]["asserted_wrongly"] == 1.0
    assert value["modes"]["rag"]["asserted_wrongly"] == 0.0
    assert value["memory_less_rag"]["k=5"]["f1"]["mean"] == pytest.approx(0.3)
    assert value["memory_less_rag"]["k=5"]["asserted_wrongly"]["mean"] == 1.0


def test_results_of_nobody_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("no json\n")
    with pytest.raises(EvaluationError, match="give another --out"):
        Results(tmp_path / "answers.jsonl", {})


def test_memories_are_preferred_by_their_gains() -> None:
    from app.memory.compose import compose

    lm = LanguageModel(tiny("llama"), Words())
    encoder = Encoder(lm, [3, 4])
    a, b = encoder.encode([[10, 11, 12], [20, 21]])
    memories = compose([[a, b], [b]], lm.rotary, encoder.prefix)
    gained = memories.preferring(torch.tensor([[0.0, -2.0], [-1.0, 0.0]]))
    assert gained.bias is not None
    assert gained.bias[0, 0, 0].tolist() == [0, 0, 0, 0, 0, -2, -2]
    assert gained.bias[0, 1, 0, :4].tolist() == [0, 0, -1, -1]
    assert gained.entries(1) == 4
