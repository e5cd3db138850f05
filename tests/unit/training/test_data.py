"""Training files are read row by row; what cannot be trained on is named and left out."""

from pathlib import Path

import pytest

from app.errors import EvaluationError, TrainingError
from app.training.data import read
from tests.unit.training.conftest import rows_of, written


def words(text: str) -> int:
    return len(text.split())


def test_rows_go_where_their_split_says(tmp_path: Path) -> None:
    found = read([written(tmp_path / "q.jsonl", rows_of(20))], words, 50, 0)
    assert [row.id for row in found.valid] == ["q0", "q5", "q10", "q15"]
    assert len(found.train) == 16
    assert not found.warnings
    assert len(found.passages) == 20


def test_without_a_valid_split_a_share_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "split"} for row in rows_of(400)]
    file = written(tmp_path / "q.jsonl", rows)
    first, again = read([file], words, 50, 3), read([file], words, 50, 3)
    assert first.valid == again.valid
    assert 5 <= len(first.valid) <= 40
    assert not {row.id for row in first.valid} & {row.id for row in first.train}
    assert "no rows with split `valid`" in first.warnings[0]
    assert read([file], words, 50, 4).valid != first.valid


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("{broken", "is not JSON"),
        ({"answers": [" "]}, "the answer is empty"),
        ({"answers": []}, "`gold`|the answer is empty"),
        ({"question": " "}, "the question is empty"),
        ({"gold": []}, "no passage is marked as holding the answer"),
        ({"question": "why " * 60}, "the question has more than 50 tokens"),
        ({"answers": ["so " * 70]}, "the answer has more than 64 tokens"),
        ({"passages": 3}, "`passages` is missing or no list"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named_by_file_and_line(
    tmp_path: Path, change: str | dict[str, object], reason: str
) -> None:
    rows: list[object] = list(rows_of(20))
    rows[3] = change if isinstance(change, str) else {**rows_of(4)[3], "answerable": True, **change}
    file = written(tmp_path / "q.jsonl", rows)
    found = read([file], words, 50, 0)
    assert len(found.train) == 15
    (warning,) = found.warnings
    assert f"{file}:4" in warning
    assert any(one in warning for one in reason.split("|"))


def test_many_broken_rows_are_counted_and_not_listed(tmp_path: Path) -> None:
    found = read([written(tmp_path / "q.jsonl", [*rows_of(20), *["x"] * 100])], words, 50, 0)
    assert len(found.warnings) == 21
    assert found.warnings[-1] == "left out: 80 more rows"


def test_unanswerable_rows_are_kept(tmp_path: Path) -> None:
    row = rows_of(2)[1] | {"id": "none", "answers": [], "gold": [], "answerable": False}
    found = read([written(tmp_path / "q.jsonl", [*rows_of(20), row])], words, 50, 0)
    assert found.train[-1].answers == ()


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="4 rows to train on and 1 to validate with"):
        read([written(tmp_path / "q.jsonl", rows_of(5))], words, 50, 0)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gone\.jsonl"):
        read([tmp_path / "gone.jsonl"], words, 50, 0)
