"""What the frontier makes of answers: kept over runs, summed up in table and plot."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from app.errors import EvaluationError, UsageError
from benchmarks import frontier
from benchmarks.frontier_report import Report
from benchmarks.frontier_results import Answer, Asked, Results

HEAD = {"model": "m", "max_tokens": 24}


def asked(id_: str, **answers: tuple[float, int | None]) -> Asked:
    """A question over a chunk of 64 tokens; by setting F1 and bytes."""
    made = {n: Answer(f"of {n}", f1, f1, 0.0, 0.5, size) for n, (f1, size) in answers.items()}
    return Asked(id_, 64, 1000, made)


def test_an_answer_is_scored_against_all_right_ones() -> None:
    found = Answer.of("in October 1973", ["1973", "October 1973"], 0.25, 7)
    assert (found.contains, found.exact, found.divergence, found.bytes) == (1.0, 0.0, 0.25, 7)
    assert found.f1 == pytest.approx(0.8)


def test_results_outlive_a_run_and_a_torn_line(tmp_path: Path) -> None:
    first = Results.of(tmp_path, HEAD)
    first.add("squad", asked("q1", dense=(1.0, 100), small=(0.5, 10)))
    first.add("squad", asked("q2", dense=(0.5, 100), small=(0.5, 10)))
    with first.file.open("a") as file:
        file.write('{"set": "squad", "id": "q3", "tok')
    second = Results.of(tmp_path, HEAD)
    assert second.known("squad", "q1") == {"dense", "small"}
    assert second.known("squad", "q3") == second.known("hotpot", "q1") == set()
    second.add("squad", asked("q1", dense=(0.0, 100), tiny=(0.1, 1)))
    for results in (second, Results.of(tmp_path, HEAD)):
        (one,) = results.asked("squad", ["q1"])
        assert {name: answer.f1 for name, answer in one.answers.items()} == {
            "dense": 1.0,
            "small": 0.5,
            "tiny": 0.1,
        }


def test_results_of_another_model_or_no_results_are_refused(tmp_path: Path) -> None:
    Results.of(tmp_path, HEAD)
    with pytest.raises(EvaluationError, match=r"answers\.jsonl.*model differ.*another --out"):
        Results.of(tmp_path, HEAD | {"model": "n"})
    (tmp_path / "answers.jsonl").write_text('["no head"]\n')
    with pytest.raises(EvaluationError, match="was not written by this benchmark"):
        Results.of(tmp_path, HEAD)


@pytest.fixture
def report() -> Report:
    found = [
        asked(
            f"q{i}",
            dense=(i / 10, 2000),
            small=(i / 10 - 0.01, 50),
            rag=(i / 10, None),
        )
        for i in range(11)
    ]
    return Report.of({"squad": found, "hotpot": found[:5]}, ["dense", "small", "rag"], "dense")


def test_sizes_are_of_a_chunk_and_differences_are_paired(report: Report) -> None:
    dense, small, rag = report.rows["squad"]
    assert (dense.bytes, dense.ratio) == (4000.0, 0.5)
    assert (small.bytes, small.ratio) == (100.0, 20.0)
    assert (rag.bytes, rag.ratio) == (None, None)
    assert dense.f1.mean == pytest.approx(0.5)
    assert small.f1_difference.mean == pytest.approx(-0.01)
    assert small.f1_difference.low == pytest.approx(-0.01)
    assert small.f1.high - small.f1.low > 0.3


def test_the_report_is_written_as_table_json_and_plot(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path, HEAD)
    text = (tmp_path / "frontier.md").read_text()
    assert "squad: 11 questions" in text
    assert "| small | 100 | 20.00 | 0.5000 |" in text
    assert "-1.0 [-1.0, -1.0]" in text
    found: dict[str, Any] = json.loads((tmp_path / "frontier.json").read_text())
    assert found["model"] == "m"
    assert found["sets"]["hotpot"]["n"] == 5
    assert found["sets"]["squad"]["rows"][1]["f1_difference"]["mean"] == pytest.approx(-0.01)
    drawn = ElementTree.fromstring((tmp_path / "frontier.svg").read_text())  # noqa: S314
    names = {"svg": "http://www.w3.org/2000/svg"}
    at = [
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in drawn.findall("svg:circle", names)
    ]
    assert len(at) == 4
    assert at[1][0] < at[0][0], "smaller stands to the left"
    assert at[1][1] > at[0][1], "worse stands below"


def test_numbers_that_do_not_fit_the_files_are_wrong_usage(tmp_path: Path) -> None:
    row = {"id": "q", "question": "?", "answers": ["a"], "gold": ["p"]}
    row["passages"] = [{"id": "p", "title": "t", "text": "a"}]  # type: ignore[list-item]
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row) + "\n")
    for files, numbers, reason in (
        ({}, [1], "no questions"),
        ({"squad": file}, [1, 2], "-n is one number"),
        ({"squad": file}, [0], "-n is one number"),
        ({"squad": file}, [2], "holds 1 answerable questions"),
    ):
        with pytest.raises(UsageError, match=reason):
            frontier.run(files, numbers, [], tmp_path)
