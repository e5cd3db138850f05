"""README and docs: what they link to and name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
_NAMED = re.compile(r"`(docs/[\w./-]+\.md)`")


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_page_that_is_linked_or_named_is_there(page: Path) -> None:
    text = page.read_text()
    wanted = [page.parent / name for name in _LINK.findall(text)]
    wanted += [ROOT / name for name in _NAMED.findall(text)]
    assert [str(target) for target in wanted if not target.exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    listed = {(ROOT / "docs" / name).resolve() for name in _LINK.findall(index)}
    pages = set(ROOT.glob("docs/**/*.md")) - {ROOT / "docs" / "README.md"}
    decisions = {page for page in pages if page.parent.name == "decisions"}
    index_of_decisions = (ROOT / "docs" / "decisions" / "README.md").read_text()
    assert pages - decisions <= listed
    for record in decisions - {ROOT / "docs" / "decisions" / "README.md"}:
        assert f"({record.name})" in index_of_decisions


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", "docs/measured.md", "docs/how-to/measure.md"):
        named = re.findall(r"(?:^ +|`)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE)
        assert set(named) <= targets, page
