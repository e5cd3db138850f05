"""JSONL rows: each a document of its own, or a failure that names its line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.ingest.document import Document, Failure
from app.ingest.read import read

LIMIT = 10_000


def results(path: Path, *lines: str | bytes, limit: int = LIMIT) -> list[Document | Failure]:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    )
    return list(read([path], limit))


def test_a_row_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {
        "id": " doc-1 ",
        "title": "A \n title",
        "text": "one \r\ntwo",
        "allow": ["principal:ann", "group:hr", "everyone", "group:hr"],
        "metadata": {"n": [1, {"deep": None}]},
        "tenant": "acme",
        "path": "a/b.md",
        "ignored": object.__name__,
    }
    assert results(path, "", json.dumps(row)) == [
        Document(
            id="doc-1",
            source=f"{path}#doc-1",
            title="A title",
            text="one\ntwo",
            allow=("principal:ann", "group:hr", "everyone"),
            metadata={"path": "a/b.md", "n": [1, {"deep": None}]},
            tenant="acme",
        )
    ]


def test_a_row_with_the_least(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first, second = results(
        path,
        b'\xef\xbb\xbf{"id": 7, "text": "x", "title": " ", "allow": null, "metadata": null}',
        '{"id": 1.5, "text": "y", "allow": []}',
    )
    assert first == Document("7", f"{path}#7", "7", "x")
    assert second == Document("1.5", f"{path}#1.5", "1.5", "y", allow=())


BAD_ROWS = [
    ("not json", "is not JSON (Expecting value, column 1)"),
    ('{"id": 1, "text": "x"', "is not JSON ("),
    ("[1]", "is a list; each line must be one JSON object"),
    ('"x"', "is a text; each line"),
    ("null", "is null; each line"),
    ('{"text": "x"}', '"id" is missing or empty'),
    ('{"id": " ", "text": "x"}', '"id" is missing or empty'),
    ('{"id": true, "text": "x"}', '"id" is true or false; it must be a text'),
    ('{"id": ["a"], "text": "x"}', '"id" is a list; it must be a text'),
    ('{"id": "a\\nb", "text": "x"}', '"id" has the control character U+000A'),
    ('{"id": "a\\u0000", "text": "x"}', '"id" has a NUL at character 1'),
    ('{"id": "' + "i" * 513 + '", "text": "x"}', '"id" has 513 characters; at most 512'),
    ('{"id": 1}', '"text" is missing; each row needs "id" and "text"'),
    ('{"id": 1, "text": 5}', '"text" is a number; it must be a text'),
    ('{"id": 1, "text": " \\n"}', "is empty; it has no text"),
    ('{"id": 1, "text": "a\\u0000"}', '"text" has a NUL at character 1'),
    ('{"id": 1, "text": "\\ud800"}', '"text" has a lone surrogate at character 0'),
    (json.dumps({"id": 1, "text": "x" * 10_001}), "10,001 bytes of text are more than the limit"),
    (json.dumps({"id": 1, "text": "x" * 20_001}), "the line is longer than 20,000 bytes"),
    ('{"id": 1, "text": "x", "title": 5}', '"title" is a number'),
    ('{"id": 1, "text": "x", "title": "\\u0000"}', '"title" has a NUL'),
    ('{"id": 1, "text": "x", "allow": "everyone"}', '"allow" is a text; it must be a list'),
    ('{"id": 1, "text": "x", "allow": [1]}', '"allow" holds a number'),
    ('{"id": 1, "text": "x", "allow": ["ann"]}', "\"allow\" holds 'ann'; it must be everyone"),
    ('{"id": 1, "text": "x", "allow": ["group: "]}', "\"allow\" holds 'group: '"),
    ('{"id": 1, "text": "x", "metadata": []}', '"metadata" is a list; it must be an object'),
    ('{"id": 1, "text": "x", "metadata": {"a": ["\\u0000"]}}', '"metadata" has a NUL'),
    ('{"id": 1, "text": "x", "metadata": {"\\ud800": 1}}', '"metadata" has a lone surrogate'),
    ('{"id": 1, "text": "x", "metadata": {"a": 1e999}}', '"metadata" has a number that is too'),
    ('{"id": 1, "text": "x", "metadata": {"a": NaN}}', "is not valid JSON (ValueError: NaN"),
    ('{"id": 1, "text": "x", "metadata": ' + "1" * 5000 + "}", "is not valid JSON (ValueError"),
    ("[" * 9000 + "]" * 9000, "is not valid JSON (RecursionError"),
    ('{"id": 1, "text": "x", "tenant": 5}', '"tenant" is a number'),
    ('{"id": 1, "text": "x", "tenant": " "}', '"tenant" is empty'),
    ('{"id": 1, "text": "x", "path": 5}', '"path" is a number'),
    (b'{"id": 1, "text": "\xe9"}', "byte 19 (0xe9) is not UTF-8; save it as UTF-8"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_ROWS, ids=[problem for _, problem in BAD_ROWS])
def test_a_bad_row_is_named_by_its_line_and_the_rest_goes_on(
    tmp_path: Path, line: str | bytes, problem: str
) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"id": "%s", "text": "x"}'
    first, second, third = results(path, good % "before", line, good % "after")
    assert isinstance(first, Document)
    assert isinstance(second, Failure)
    assert second.source == f"{path}:2"
    assert second.error.startswith(f"{path}:2: {problem}")
    assert second.error.isprintable()
    assert isinstance(third, Document)


def test_an_id_stands_for_one_row_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = '{"id": "x", "text": "%s"}'
    first, second = results(path, row % "one", row % "two")
    assert isinstance(first, Document)
    assert isinstance(second, Failure)
    assert second.error == f"{path}:2: id x is already on line 1; rename it"


def test_a_bad_row_does_not_take_its_id_away(tmp_path: Path) -> None:
    first, second = results(
        tmp_path / "a.jsonl", '{"id": "x", "text": ""}', '{"id": "x", "text": "y"}'
    )
    assert isinstance(first, Failure)
    assert isinstance(second, Document)


def gz(path: Path, rows: int) -> bytes:
    lines = (json.dumps({"id": n, "text": f"text {n} " * 20}) for n in range(rows))
    data = gzip.compress("\n".join(lines).encode())
    path.write_bytes(data)
    return data


def test_gzip_is_read_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gz(path, 3000)
    assert [result.source for result in read([path], LIMIT)] == [f"{path}#{n}" for n in range(3000)]
    path.write_bytes(data[: len(data) // 2])
    *documents, last = read([path], LIMIT)
    assert documents
    assert all(isinstance(document, Document) for document in documents)
    assert isinstance(last, Failure)
    assert last.error.startswith(
        f"{path}: the gzip data is damaged or cut off after line {len(documents)} ("
    )
    half = len(data) // 2
    path.write_bytes(data[:half] + b"\xff" * 50 + data[half + 50 :])
    assert any(isinstance(result, Failure) for result in read([path], LIMIT))
    path.write_bytes(b"plain text")
    (problem,) = read([path], LIMIT)
    assert isinstance(problem, Failure)
    assert "damaged or cut off after line 0 (Not a gzipped file" in problem.error


def test_a_huge_line_is_never_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(30):
            file.write(b"x" * 1_000_000)
        file.write(b'\n{"id": "after", "text": "x"}')
    tracemalloc.start()
    try:
        problem, document = read([path], LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(problem, Failure)
    assert problem.error == f"{path}:1: the line is longer than 20,000 bytes; split the text"
    assert isinstance(document, Document)
    assert peak < 8_000_000


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["id", "title", "text", "allow", "metadata", "tenant", "path"])


@settings(max_examples=80)
@given(row=st.dictionaries(KEYS, JSON_VALUES | st.text(min_size=1)))
def test_any_object_gives_a_storable_document_or_a_failure(
    tmp_path: Path, row: dict[str, object]
) -> None:
    (result,) = results(tmp_path / "a.jsonl", json.dumps(row))
    if isinstance(result, Failure):
        assert result.error.startswith(f"{tmp_path}/a.jsonl:1: ")
        return
    for value in (result.id, result.title, result.text, result.source, result.tenant or "x"):
        assert value
        assert "\0" not in value
        value.encode("utf-8")
    assert "\\u0000" not in json.dumps(result.metadata, allow_nan=False).replace("\\\\", "")
