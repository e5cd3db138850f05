"""`make measured`: commands that exist, output that becomes tables, a page and a chart."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.main import get_command

from app.cli import app
from app.evaluation.questions import read
from app.process import console
from benchmarks.data import corpus, hotpot, main, squad
from benchmarks.measured import SUBJECTS, missing, words
from benchmarks.measured_page import Result, first_token, quality, render, tables

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "measured.md").read_text()


def result(name: str, **changes: Any) -> Result:
    known = json.loads((ROOT / "docs" / "measured" / f"{name}.json").read_text())
    return Result.of(known | changes)


def test_each_subject_has_its_place_on_the_page() -> None:
    sections = re.findall(r"<!-- measured: ([a-z-]+) -->", PAGE)
    assert sorted(sections) == sorted(subject.name for subject in SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_each_command_is_one_that_there_is(subject: Any) -> None:
    program, *rest = words(subject, Path("data"), {})
    if program == "make":
        assert f"\n{rest[0]}: " in (ROOT / "Makefile").read_text()
        return
    command: Any = get_command(app)
    while rest and rest[0] in getattr(command, "commands", ()):
        command = command.commands[rest.pop(0)]
    command.make_context(subject.name, rest)  # raises for an option that there is not
    if subject.peer:
        assert any(subject.peer in option.opts for option in command.params)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    [subject] = [one for one in SUBJECTS if one.name == "quality-squad"]
    assert missing(subject, None) == ["eval_squad2.jsonl.gz", "corpus_wiki.jsonl.gz"]
    (tmp_path / "eval_squad2.jsonl.gz").touch()
    assert missing(subject, tmp_path) == ["corpus_wiki.jsonl.gz"]


def test_a_printed_table_is_read_as_it_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("medians of 2", ["k", "mode"], [[1, "memory"], [20, "llama.cpp rag"]])
    console.table("the next", ["only"], [["x"]])
    console.say("memory less RAG: +1.2 [-1.4, 3.7]")
    found, notes = tables(capsys.readouterr().out)
    assert [(t.title, t.head, t.rows) for t in found] == [
        ("medians of 2", ["k", "mode"], [["1", "memory"], ["20", "llama.cpp rag"]]),
        ("the next", ["only"], [["x"]]),
    ]
    assert notes == ["memory less RAG: +1.2 [-1.4, 3.7]"]


def test_the_page_takes_what_was_measured_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "measured.md").write_text(PAGE)
    results = tmp_path / "measured"
    results.mkdir()
    new = result("first-token", machine="a machine of its own")
    (results / "first-token.json").write_text(json.dumps(asdict(new)))
    render(results, tmp_path)
    page = (tmp_path / "measured.md").read_text()
    assert "a machine of its own" in page
    assert page.count("<!-- end -->") == PAGE.count("<!-- end -->")
    assert "make chaos" in page
    assert not (tmp_path / "measured.svg").exists()


def test_page_and_chart_are_those_of_the_results(tmp_path: Path) -> None:
    (tmp_path / "measured.md").write_text(PAGE)
    render(ROOT / "docs" / "measured", tmp_path)
    assert (tmp_path / "measured.md").read_text() == PAGE
    drawn = (tmp_path / "measured.svg").read_text()
    assert drawn == (ROOT / "docs" / "measured.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")  # noqa: S314 (our own)
    assert result("first-token").machine in drawn


def test_readme_has_the_figures_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text()
    first, answers = first_token(result("first-token")), quality(result("quality-squad"))
    for name in ("memory", "text, transformers"):
        assert " / ".join(f"{value:,.0f}" for value, _, _ in first.series[name]) in readme
    for rows in answers.series.values():
        assert f" {max(rows)[0]:.1f}" in readme


SQUAD = {
    "data": [
        {
            "title": "Oil_crisis",
            "paragraphs": [
                {
                    "context": " It began in 1973. ",
                    "qas": [
                        {
                            "id": "1",
                            "question": "When? ",
                            "answers": [{"text": "1973"}, {"text": "1973"}],
                            "is_impossible": False,
                        },
                        {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ]
}
HOTPOT = [
    {
        "_id": "7",
        "question": "Which band?",
        "answer": "Rush",
        "supporting_facts": [["A", 0]],
        "context": [["A", ["Rush is", " a band."]], ["B", ["B is not."]]],
    },
    {"_id": "8", "question": "Is it?", "answer": "yes", "supporting_facts": [], "context": []},
]


def test_question_files_are_made_of_public_ones(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        source, out = tmp_path / "dev.json", tmp_path / "eval.jsonl.gz"
        source.write_text(json.dumps(SQUAD))
        patch.setattr("sys.argv", shlex.split(f"data squad {source} {out}"))
        main()
    first, second = read(out)
    assert (first.answers, first.answerable, first.gold_passages[0].text) == (
        ("1973",),
        True,
        "It began in 1973.",
    )
    assert (second.answers, second.answerable) == ((), False)
    assert first.gold == second.gold


def test_a_passage_has_one_id_everywhere_and_comes_once() -> None:
    [row] = hotpot(HOTPOT)
    assert row["gold"] == [row["passages"][0]["id"]]
    passages = list(corpus([row, *squad(SQUAD), *squad(SQUAD)]))
    assert [one["title"] for one in passages] == ["A", "B", "Oil crisis"]
