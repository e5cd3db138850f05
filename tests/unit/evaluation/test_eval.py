"""`membank eval` on tiny models, nothing replaced: all modes, the same numbers again, where it left
off, and that answers are the ones that users get."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import EvaluationError, UsageError
from app.evaluation import command
from app.evaluation.abstention import ABSTENTION
from app.evaluation.corpus import pieces_of
from app.evaluation.memories import MemoryStore
from app.evaluation.plan import Plan
from app.evaluation.questions import read
from app.evaluation.report import Report
from app.evaluation.results import Answered, Results
from app.memory.compose import compose
from app.memory.decode.native import NativeDecoder
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from app.memory.model.prompt import closed_book
from app.runtime.identity import count_tokens
from app.runtime.models import generator, models
from tests.unit.evaluation.conftest import forget
from tests.unit.memory.families import tiny
from tests.unit.training.conftest import Words, one_thread, rows_of, written

__all__ = ["one_thread"]


def file_of(tmp_path: Path) -> Path:
    nothing = {"id": "none", "answers": [], "gold": [], "answerable": False}
    return written(tmp_path / "q.jsonl", [*rows_of(8), rows_of(9)[8] | nothing])


PLAN = Plan(ks=(1, 3), max_tokens=3)


def test_every_mode_answers_every_question(program: Path) -> None:
    report, value = command.run(file_of(program), PLAN, out=program / "out")
    assert (value["n"], value["answerable"]) == (9, 8)
    assert set(value["modes"]) == {"memory", "rag", "closed"}
    for mode in value["modes"].values():
        assert {"contains", "f1", "exact", "recall_at_k", "first_token_ms_p50"} <= set(mode)
    assert [score["k"] for score in value["modes"]["memory"]["by_k"]] == [1, 3]
    assert "k=1" in value["memory_less_rag"]
    assert {f.name for f in (program / "out").iterdir()} == {
        *("answers.jsonl", "eval.json", "eval.md", "eval.svg")
    }
    json.dumps(value)
    assert len(report.scores) == 5


def answers_in(folder: Path) -> dict[tuple[str, int, str], str]:
    """By mode, k and question, as the journal has them."""
    lines = (folder / "answers.jsonl").read_text().splitlines()[1:]
    return {(r["mode"], r["k"], r["id"]): r["answer"] for r in map(json.loads, lines)}


def test_answers_are_those_that_the_engine_gives_with_packed_weights(program: Path) -> None:
    """One question after the other, from what a bank would hold, by what answers users."""
    file = file_of(program)
    command.run(file, Plan(ks=(1,), max_tokens=12, gold=True), out=program / "out")
    m, said = models(), answers_in(program / "out")
    assert isinstance(generator("memory").decoder, NativeDecoder)
    store = MemoryStore.of(m)
    for question in read(file):
        texts = [piece.text for piece in pieces_of(question.passages, count_tokens)]
        tail = m.prompt.tail(question.question)
        row = [store.load(text) for text in texts]
        memories = compose([row], m.lm.rotary, m.encoder.prefix)
        chunks = [m.prompt.chunk(text) for text in texts]
        text = m.prompt.with_text(chunks, question.question)
        closed = closed_book(m.lm.tokenizer, question.question)
        for mode, k, prompt, read_ in (("memory", 1, tail, memories), ("closed", 0, closed, None)):
            expected = generator("memory").generate(prompt, 12, read_).text
            assert said[mode, k, question.id] == expected, (mode, question.id)
        # Rounding of the cache may turn a token of what a random model says.
        expected = generator("rag").generate(text, 12).text
        assert said["rag", 1, question.id].split()[:3] == expected.split()[:3], question.id


def test_the_weights_decide_the_answers(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to 4 bits, a model this small says something else: so they are what is evaluated."""
    file, plan = file_of(program), Plan(("memory",), (1,), max_tokens=12)
    found = {}
    for weights in ("int8", "int4"):
        monkeypatch.setenv("MEMBANK_WEIGHTS", weights)
        forget()
        command.run(file, plan, out=program / weights)
        found[weights] = answers_in(program / weights)
    assert found["int8"] != found["int4"]
    with pytest.raises(EvaluationError, match="its weights differ"):
        command.run(file, plan, out=program / "int8")


def test_a_run_goes_on_where_it_was_cut_off(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(program)
    _, whole = command.run(file, PLAN, out=program / "whole")
    command.run(file, PLAN, out=program / "cut")
    answers = program / "cut" / "answers.jsonl"
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join(lines[:12]) + '\n{"mode": "mem')
    _, resumed = command.run(file, PLAN, out=program / "cut")
    for value in (whole, resumed):
        for mode in value["modes"].values():
            del mode["first_token_ms_p50"]
    assert resumed == whole
    assert sorted(answers.read_text().splitlines()) == sorted(lines)


def test_own_passages_are_searched_where_it_is_asked_for(program: Path) -> None:
    plan = Plan(("memory",), (3,), max_tokens=2, gold=True)
    _, value = command.run(file_of(program), plan)
    assert value["modes"]["memory"]["recall_at_k"] == 1.0


def test_a_corpus_is_searched_and_near_duplicates_count(program: Path) -> None:
    rows = rows_of(8)
    twin = {"id": "twin", "title": "", "text": rows[1]["question"]}
    corpus = written(program / "corpus.jsonl", [twin])
    file = written(program / "q.jsonl", [rows[1]])
    plan = Plan(("memory",), (1,), max_tokens=2)
    assert command.run(file, plan, corpus)[1]["modes"]["memory"]["recall_at_k"] == 0.0
    (program / "corpus_dups.json").write_text(json.dumps([["p1", "twin"]]))
    assert command.run(file, plan, corpus)[1]["modes"]["memory"]["recall_at_k"] == 1.0


def test_answers_of_another_evaluation_are_not_taken(program: Path) -> None:
    file = file_of(program)
    command.run(file, PLAN, out=program / "out")
    with pytest.raises(EvaluationError, match="its max_tokens differ"):
        command.run(file, Plan(ks=(1, 3), max_tokens=4), out=program / "out")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"ks": (0,)}, "-k is 0"), ({"modes": ("text",)}, "'text'"), ({"n": 0}, "-n is 0")],
)
def test_plans_that_cannot_be_are_refused(wrong: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Plan(**wrong)


def test_more_questions_than_there_are_is_refused(program: Path) -> None:
    with pytest.raises(UsageError, match="holds 9 questions, -n asks for 10"):
        command.run(file_of(program), Plan(n=10))


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
    lm = LanguageModel(tiny("llama"), Words())
    encoder = Encoder(lm, [3, 4])
    a, b = encoder.encode([[10, 11, 12], [20, 21]])
    memories = compose([[a, b], [b]], lm.rotary, encoder.prefix)
    gained = memories.preferring(torch.tensor([[0.0, -2.0], [-1.0, 0.0]]))
    assert gained.bias is not None
    assert gained.bias[0, 0, 0].tolist() == [0, 0, 0, 0, 0, -2, -2]
    assert gained.bias[0, 1, 0, :4].tolist() == [0, 0, -1, -1]
    assert gained.entries(1) == 4
