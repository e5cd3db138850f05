"""What holds for the chunks of any text, and what they look like for real Markdown."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.demo.sample import HANDBOOKS
from app.ingest.blocks import first_heading
from app.ingest.document import Document
from app.ingest.read import read
from app.ingest.split import Chunk, CountTokens, chunk_hash, split
from tests.work import calls


def words(text: str) -> int:
    return len(text.split())


def thirds(text: str) -> int:
    return len(text) // 3 + 1


def utf8(text: str) -> int:
    return len(text.encode("utf-8"))


def joins_are_dear(text: str) -> int:
    """Unlike a tokenizer: the whole costs more than its parts and a token for each join."""
    return len(text) // 3 + 1 + 2 * text.count("\n") + text.count(". ")


COUNTERS = [words, thirds, utf8, joins_are_dear]

LINES = st.one_of(
    st.sampled_from(["", "# One", "## Two ##", "### Three", "#### ", "```", "~~~~", "====", "---"]),
    st.sampled_from(["- item", "  - deeper", "1. first", "| a | b |", "| --- | --- |", "> quote"]),
    st.sampled_from(["A sentence. And another! Is it? Yes.", "第一句。第二句！", "    # x", "\t#"]),
    st.text(max_size=60),
    st.text("ab .\n🙂", max_size=400),
)
TEXTS = st.lists(LINES, max_size=30).map("\n".join)
TITLES = st.one_of(st.sampled_from(["", "One", "Handbook"]), st.text(max_size=200))


def left_out(text: str, chunks: list[Chunk]) -> Iterator[str]:
    """What lies in no chunk."""
    at = 0
    for chunk in chunks:
        yield text[at : chunk.start]
        at = chunk.end
    yield text[at:]


def is_headings(text: str) -> bool:
    """Nothing but white space and headings, which the header lines hold."""
    lines = [line for line in text.split("\n") if line.strip()]
    while lines:
        if re.match(r" {0,3}#{1,6}\s+\S", lines[0]):
            del lines[0]
        elif len(lines) > 1 and re.fullmatch(r"\s*(={3,}|-{3,})\s*", lines[1]):
            del lines[:2]
        else:
            return False
    return True


def assert_sound(title: str, text: str, count: CountTokens, limit: int) -> list[Chunk]:
    chunks = split(title, text, count, limit)
    assert chunks == split(title, text, count, limit)
    at = 0
    for chunk in chunks:
        assert count(chunk.text) <= limit
        body = text[chunk.start : chunk.end]
        assert body == body.strip() != ""
        assert chunk.text == body or chunk.text.endswith("\n" + body)
        assert at <= chunk.start
        at = chunk.end
    assert all(map(is_headings, left_out(text, chunks)))
    assert bool(chunks) == bool(text.strip())
    return chunks


@pytest.mark.parametrize("count", COUNTERS)
@settings(max_examples=60)
@given(title=TITLES, text=TEXTS, limit=st.integers(24, 160))
@example(title="", text="", limit=128)
@example(title="T", text=" \n\t\n", limit=128)
@example(title="x" * 2000, text="# " + "y" * 250 + "\n\nbody " * 40, limit=32)
@example(title="T", text="🙂" * 700, limit=24)
@example(title="T", text="a" + "\n" * 5000 + "b", limit=24)
def test_any_text_is_cut_into_chunks_that_fit_and_lose_nothing(
    count: CountTokens, title: str, text: str, limit: int
) -> None:
    assert_sound(title, text, count, limit)


@settings(max_examples=50)
@given(paragraphs=st.lists(st.text("ab. \n", min_size=1, max_size=300), min_size=1))
def test_without_headings_every_visible_character_is_in_exactly_one_chunk(
    paragraphs: list[str],
) -> None:
    text = "\n\n".join(paragraphs)
    chunks = split("Title", text, thirds, 40)
    kept = "".join(text[chunk.start : chunk.end] for chunk in chunks)
    assert "".join(kept.split()) == "".join(text.split())


@settings(max_examples=50)
@given(title=st.text(min_size=1, max_size=3000), headings=st.lists(st.text("abc ", max_size=250)))
def test_the_context_line_takes_at_most_a_third(title: str, headings: list[str]) -> None:
    lines = [f"{'#' * min(6, level)} {name}" for level, name in enumerate(headings, 1)]
    for chunk in split(title, "\n".join([*lines, "body"]), thirds, 60):
        context = chunk.text.removesuffix("body").rstrip("\n")
        assert "\n" in context or thirds(context) <= 20


HANDBOOK = """\
# Handbook

Welcome.

## Leave

### Parental leave

Twenty weeks, fully paid. Ask your lead.

- first item
- second item
  goes on

### Sick leave

No limit.

```python
# not a heading
def f(): pass
```

## Money ##

| item | limit |
| --- | --- |
| laptop | 2,000 |
| chair | 500 |

Travel
------
By train.
"""


def test_headings_open_sections_and_give_the_context() -> None:
    chunks = split("Handbook", HANDBOOK, thirds)
    assert [chunk.text.split("\n", 1) for chunk in chunks] == [
        ["Handbook", "Welcome."],
        [
            "Handbook > Leave > Parental leave",
            "Twenty weeks, fully paid. Ask your lead.\n\n- first item\n- second item\n  goes on",
        ],
        [
            "Handbook > Leave > Sick leave",
            "No limit.\n\n```python\n# not a heading\ndef f(): pass\n```",
        ],
        [
            "Handbook > Money",
            "| item | limit |\n| --- | --- |\n| laptop | 2,000 |\n| chair | 500 |",
        ],
        ["Handbook > Travel", "By train."],
    ]
    assert [chunk.heading for chunk in chunks][:2] == ["", "Leave > Parental leave"]
    for chunk in chunks:
        assert HANDBOOK[chunk.start : chunk.end] == chunk.text.split("\n", 1)[1]


def test_a_title_that_is_not_the_first_heading_stands_before_it() -> None:
    assert split("Acme", "# Rules\n\nBe kind.", words)[0].text == "Acme > Rules\nBe kind."
    assert split("", "# Rules\n\nBe kind.", words)[0].text == "Rules\nBe kind."
    assert split("", "Be kind.", words)[0].text == "Be kind."
    assert split("rules", "# Rules\n\nBe kind.", words)[0].text == "rules\nBe kind."


def test_a_heading_with_nothing_below_it_is_text_of_the_section_around_it() -> None:
    text = "# Steps\n\nDo these:\n\n## 1. Ask your lead\n\n## 2. Fill in the form\n\n# End\n\nDone."
    assert [chunk.text for chunk in split("T", text, words)] == [
        "T > Steps\nDo these:\n\n## 1. Ask your lead\n\n## 2. Fill in the form",
        "T > End\nDone.",
    ]
    assert [chunk.text for chunk in split("T", "# Only this", words)] == ["T\n# Only this"]


def test_long_paragraphs_are_cut_at_sentences_and_blocks_kept_whole() -> None:
    long = " ".join(f"Sentence number {n} has exactly seven words." for n in range(12))
    row = "| " + " | ".join("cell" for _ in range(8)) + " |"
    code = "```\n" + "\n".join(f"call number {n}" for n in range(6)) + "\n```"
    chunks = split("T", f"{long}\n\n{row}\n{row}\n\n{code}", words, 40)
    bodies = [chunk.text.split("\n", 1)[1] for chunk in chunks]
    assert all(body.endswith(("words.", "|", "```")) for body in bodies)
    assert all(body.count("```") in (0, 2) for body in bodies)


def test_a_long_table_is_cut_between_rows_and_a_long_sentence_between_words() -> None:
    rows = "\n".join(f"| row {n} | value {n} |" for n in range(60))
    assert all(
        line.startswith("|") and line.endswith("|")
        for chunk in split("T", rows, thirds, 40)
        for line in chunk.text.split("\n")[1:]
    )
    sentence = " ".join(f"word{n}" for n in range(300))
    cut = [chunk.text.split("\n", 1)[1] for chunk in split("T", sentence, thirds, 40)]
    assert " ".join(cut) == sentence


def test_chunks_are_filled() -> None:
    text = " ".join(f"Sentence number {n} says a little more." for n in range(400))
    sizes = [thirds(chunk.text) for chunk in split("T", text, thirds, 128)]
    assert min(sizes[:-1]) > 110


def test_abbreviations_inside_a_sentence_are_no_place_to_cut() -> None:
    sentence = "we use tools, e.g. hammers and saws, for all of the work that is to be done here."
    chunks = split("T", " ".join([f"A{sentence[1:]}"] * 8), words, 24)
    assert all(chunk.text.endswith("here.") for chunk in chunks)


def test_a_line_too_long_for_a_heading_is_text() -> None:
    text = "# " + "long " * 100 + "\n\nbody"
    chunks = assert_sound("T", text, thirds, 128)
    assert "".join(text[c.start : c.end] for c in chunks).count("long") == 100


def test_an_unclosed_fence_goes_to_the_end() -> None:
    assert split("T", "```\n# a\n\n# b", words)[0].text == "T\n```\n# a\n\n# b"
    assert first_heading("```\n# a\n```\n# b `c` #") == "b `c`"
    assert first_heading("Name\n====\n") == "Name"
    assert first_heading("## two") is None


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        split("T", "text", words, 15)
    with pytest.raises(ValueError, match="does not fit"):
        split("T", "text", lambda text: 1000 * len(text), 128)


def test_chunk_hash_is_sha256_of_utf8() -> None:
    assert chunk_hash("é") == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"


HOSTILE: dict[str, Callable[[int], str]] = {
    "one line without spaces": lambda size: "".join(
        random.Random(1).choices("abcdefghijk0123456789", k=size)
    ),
    "dots": lambda size: "." * size,
    "hashes": lambda size: "#" * size,
    "backticks": lambda size: "`" * size,
    "white space": lambda size: "a" + " " * size + "b",
    "newlines": lambda size: "a" + "\n" * size + "b",
    "headings": lambda size: "\n".join(f"{'#' * (n % 6 + 1)} h{n}" for n in range(size // 10)),
    "open fences": lambda size: "```\n" * (size // 4),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_work_grows_no_faster_than_the_text(kind: str) -> None:
    def work(size: int) -> int:
        """Calls, and characters that the tokenizer is handed."""
        text, counted = HOSTILE[kind](size), 0

        def count(piece: str) -> int:
            nonlocal counted
            counted += len(piece)
            return thirds(piece)

        return calls(lambda: split("Title", text, count)) + counted

    assert work(40_000) < 5 * work(10_000)


SAMPLES = {HANDBOOKS / "northwind": 21, HANDBOOKS / "harbor": 21}
REAL = Path(__file__).parents[4] / "shared/data/demo_handbooks.jsonl.gz"
if REAL.exists():
    SAMPLES[REAL] = 531


@pytest.mark.parametrize("handbooks", SAMPLES, ids=lambda path: path.name)
def test_handbooks_are_read_and_split_without_a_failure(handbooks: Path) -> None:
    documents = list(read([handbooks], 64_000_000))
    assert len(documents) == SAMPLES[handbooks]
    for document in documents:
        assert isinstance(document, Document), document
        chunks = split(document.title, document.text, thirds)
        assert chunks
        assert max(thirds(chunk.text) for chunk in chunks) <= 128
