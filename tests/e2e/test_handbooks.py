"""Real staff handbooks of four organisations as four tenants, on a part of the shared data."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from app.access.principals import add_principal
from app.answer.retrieval import Reader, find
from app.answer.service import ask
from app.ingest.command import Report
from app.ingest.command import run as ingest
from app.local.stack import Stack

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TENANTS = ("civicactions", "gds-way", "gsa-tts", "sourcegraph")

pytestmark = pytest.mark.skipif(
    not (DATA / "demo_handbooks.jsonl.gz").is_file(), reason="the shared data is not here"
)


def questions() -> list[dict[str, Any]]:
    lines = (DATA / "demo_questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["tenant"] in TENANTS]


@pytest.fixture(scope="module")
def report(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Four tenants: the documents that questions are about, and some more."""
    gold = {doc for row in questions() for doc in row["gold_docs"]}
    with gzip.open(DATA / "demo_handbooks.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    chosen = [row for row in rows if row["tenant"] in TENANTS and row["id"] in gold]
    others = [r for r in rows if r["tenant"] in TENANTS and r["id"] not in gold]
    short = sorted(others, key=lambda row: len(row["text"]))[:12]
    file = tmp_path_factory.mktemp("handbooks") / "some.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        # The longest would take minutes to encode here; the questions are near their beginnings.
        stream.writelines(
            json.dumps(row) + "\n" for row in [*chosen, *short] if len(row["text"]) < 8_000
        )
    made = ingest([file], None, "handbook", None, create=True, until_encoded=True)
    for tenant in TENANTS:
        add_principal(tenant, "reader")
    return made


@pytest.mark.timeout(600)
def test_every_chunk_of_every_document_has_a_memory(report: Report) -> None:
    assert report.failed == []
    assert len(report.documents) > 15
    assert report.memories == report.chunks > 100


def test_search_finds_the_right_document_for_most_questions(report: Report) -> None:
    stored = {d.id for d in report.documents}
    asked = [q for q in questions() if q["answerable"] and set(q["gold_docs"]) <= stored]
    hits = 0
    for row in asked:
        found = find(Reader.of(row["tenant"], "handbook", "reader"), row["question"], 5)
        assert len(found.passages) == 5
        hits += any(p.document_id in row["gold_docs"] for p in found.passages)
    assert len(asked) >= 5
    assert hits >= 0.7 * len(asked)


def test_no_answer_holds_another_tenants_text(report: Report) -> None:
    asked = [q for q in questions() if q.get("leak_answers")]
    assert asked
    for row in asked:
        reader = Reader.of(row["tenant"], "handbook", "reader")
        passages = find(reader, row["question"], 10).passages
        assert all(p.document_id.startswith(row["tenant"] + ":") for p in passages)
        answer = ask(reader, row["question"], k=3, max_tokens=32)
        assert not any(leak in answer.answer for leak in row["leak_answers"])
