"""Statements in files of their own: each has a name that is used, and a sentence."""

import re
from pathlib import Path

import pytest

from app.db.sql import statements

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "app").rglob("*.sql"))


def test_a_file_gives_its_statements_by_name_without_the_comments_in_front(tmp_path: Path) -> None:
    (tmp_path / "module.sql").write_text(
        "-- Of the whole file.\n\n-- name: first\n-- What it does: twice.\nSELECT 1,\n"
        "    2  -- why\n\n"
        "-- name: second\n-- The other.\n-- In two lines.\nSELECT ':x' -- name: no\n"
    )
    assert statements(str(tmp_path / "module.py")) == {
        "first": "SELECT 1,\n    2  -- why",
        "second": "SELECT ':x' -- name: no",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_statement_has_a_sentence_and_is_run_by_the_module_beside_it(file: Path) -> None:
    found = statements(str(file))
    source = file.with_suffix(".py").read_text()
    named = re.findall(r"^-- name: (\w+)\n-- [A-Z].*", file.read_text(), re.MULTILINE)
    assert named == list(found)
    assert all(found.values())
    assert re.findall(r'_SQL\["(\w+)"\]', source) == named
