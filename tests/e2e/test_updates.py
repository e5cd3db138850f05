"""Two real later edits of handbook documents, applied by an administrator in SQL."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.access.principals import add_principal
from app.answer.retrieval import Reader
from app.answer.service import ask
from app.db.session import Asker, transaction
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from app.queue import status

DATA = Path(__file__).parents[2].parent / "shared" / "data"
UPDATES = DATA / "demo_updates.jsonl"

pytestmark = pytest.mark.skipif(not UPDATES.is_file(), reason="the shared data is not here")


def chunks() -> dict[str, datetime]:
    """Of the tenant's documents: hash of each chunk and when its memory was made."""
    with transaction(Asker("admin")) as connection:
        rows = connection.execute(
            text(
                "SELECT c.document_id || c.hash, k.encoded_at FROM chunk c"
                " JOIN memory_key k ON k.tenant_id = c.tenant_id AND k.chunk_id = c.id"
                " JOIN tenant t ON t.id = c.tenant_id WHERE t.name = 'updates'"
            )
        )
        return {row[0]: row[1] for row in rows}


def edit(document: str, body: str) -> None:
    with transaction(Asker("admin")) as connection:
        connection.execute(
            text(
                "UPDATE document SET text = :body WHERE id = :id"
                " AND tenant_id = (SELECT id FROM tenant WHERE name = 'updates')"
            ),
            {"body": body, "id": document},
        )


@pytest.fixture(scope="module")
def updates() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in UPDATES.read_text().splitlines()]
    with gzip.open(DATA / "demo_handbooks.jsonl.gz", "rt") as stream:
        now = {row["id"]: row["text"] for row in map(json.loads, stream)}
    return [row | {"new_text": now[row["doc"]]} for row in rows]


@pytest.mark.timeout(300)
def test_the_answer_follows_the_edit_and_only_changed_chunks_are_encoded_again(
    stack: Stack, updates: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "old.jsonl"
    lines = ({"id": r["doc"], "title": r["title"], "text": r["old_text"]} for r in updates)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = ingest([file], "updates", "handbook", None, create=True, until_encoded=True)
    assert report.memories == report.chunks > 100
    add_principal("updates", "reader")
    reader = Reader.of("updates", "handbook", "reader")
    old = {row["id"]: ask(reader, row["question"], k=3).answer for row in updates}
    before = chunks()
    for row in updates:
        edit(row["doc"], row["new_text"])
    assert wait_until(lambda: not any(status.queue().values()), 120)
    after = chunks()
    kept = before.keys() & after.keys()
    assert all(before[chunk] == after[chunk] for chunk in kept)
    for row in updates:
        whole = [chunk for chunk in after if chunk.startswith(row["doc"])]
        fresh = [chunk for chunk in whole if chunk not in kept]
        print(f"{row['doc']}: {len(fresh)} of {len(whole)} chunks encoded again")
        # Of the one, two lines are others; the other was written anew.
        assert len(fresh) == (2 if row["id"] == "upd-0" else len(whole))
        new = ask(reader, row["question"], k=3).answer
        print(f"{row['question']} {old[row['id']]!r} -> {new!r}")
        # The other's old answer stands in the fourth nearest chunk, behind wrong ones.
        if row["id"] == "upd-0":
            assert any(right in old[row["id"]] for right in row["old_answers"])
        assert any(right in new for right in row["new_answers"])
        assert not any(wrong in new for wrong in row["old_answers"])
