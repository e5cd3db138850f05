"""Question files are read, or refused with file and line, and sampled the same each time."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import EvaluationError
from app.evaluation.questions import Passage, Question, read, sample

ROW: dict[str, Any] = {
    "id": "q1",
    "question": "When?",
    "answers": ["1973", "October 1973"],
    "passages": [
        {"id": "p1", "title": "Oil", "text": "In 1973."},
        {"id": "p2", "title": "Gas", "text": "Never."},
    ],
    "gold": ["p1"],
    "answerable": True,
    "source": "of no interest",
}
QUESTION = Question(
    "q1",
    "When?",
    ("1973", "October 1973"),
    (Passage("p1", "Oil", "In 1973."), Passage("p2", "Gas", "Never.")),
    ("p1",),
    True,
)


def written(folder: Path, *rows: Any, name: str = "q.jsonl") -> Path:
    file = folder / name
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_rows_are_read_from_plain_and_gzipped_files(tmp_path: Path, name: str) -> None:
    nothing = ROW | {"id": "q2", "answers": [], "gold": [], "answerable": False}
    first, second = read(written(tmp_path, ROW, "", nothing, name=name))
    assert first == QUESTION
    assert first.gold_passages == [QUESTION.passages[0]]
    assert not second.answerable


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no JSON object"),
        (ROW | {"answers": "1973"}, "`answers` is missing or no list"),
        (ROW | {"answers": [1973]}, "`answers` is to hold texts only"),
        ({k: v for k, v in ROW.items() if k != "question"}, "`question` is missing or no text"),
        (ROW | {"passages": [{"id": "p1", "title": "Oil"}]}, "`text` is missing or no text"),
        (ROW | {"gold": ["p3"]}, "gold passage p3 is not among"),
    ],
)
def test_a_row_that_is_no_question_is_named_by_file_and_line(
    tmp_path: Path, row: Any, reason: str
) -> None:
    file = written(tmp_path, ROW, row)
    with pytest.raises(EvaluationError, match=rf"q\.jsonl:2\W.*{reason}"):
        list(read(file))


def test_a_file_that_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none\.jsonl cannot be read"):
        list(read(tmp_path / "none.jsonl"))
    file = written(tmp_path, *[ROW | {"id": str(i)} for i in range(50)], name="q.jsonl.gz")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(EvaluationError, match=r"q\.jsonl\.gz.* cannot be read"):
        list(read(file))


def test_a_sample_depends_on_ids_and_seed_alone_and_grows_at_its_end() -> None:
    questions = [replace(QUESTION, id=f"q{i}") for i in range(100)]
    few, more = sample(questions, 10, seed=3), sample(reversed(questions), 30, seed=3)
    assert more[:10] == few
    assert len({q.id for q in more}) == 30
    assert sample(questions, 10, seed=4) != few
    assert len(sample(questions, 1000)) == 100
