"""An edit of one place in a long document, made by an administrator in SQL."""

from datetime import datetime
from pathlib import Path

from sqlalchemy import text

from app.answer.ask import ask
from app.answer.retrieval import Reader
from app.db.session import Asker, transaction
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from tests import edges
from tests.e2e.conftest import make_tenant

SECTIONS = {
    "Annual leave": "Every employee of Fen has 27 days of annual leave.",
    "Office dogs": "At Fen dogs may come to the office on Friday.",
    "Travel": "Fen pays for journeys by rail in second class.",
    "Notice": "The notice period of Fen is five weeks for everyone.",
}
FILLER = "Ask the office of Fen when anything of this section is unclear to you. " * 4
QUESTION = "How many days of annual leave does an employee of Fen have?"


def chunks() -> dict[str, datetime]:
    """Hash of each of the tenant's chunks, and when its memory was made."""
    with transaction(Asker("admin")) as connection:
        rows = connection.execute(
            text(
                "SELECT c.hash, k.encoded_at FROM chunk c"
                " JOIN memory_key k ON k.tenant_id = c.tenant_id AND k.chunk_id = c.id"
                " JOIN tenant t ON t.id = c.tenant_id WHERE t.name = 'fen'"
            )
        )
        return {row[0]: row[1] for row in rows}


def test_the_answer_follows_the_edit_and_only_the_changed_chunk_is_encoded_again(
    stack: Stack, tmp_path: Path
) -> None:
    make_tenant("fen", ("alice", []))
    file = tmp_path / "handbook.md"
    file.write_text("\n\n".join(f"# {t}\n\n{said} {FILLER}" for t, said in SECTIONS.items()))
    report = ingest([file], "fen", "handbook", None, False, True)
    assert report.chunks >= len(SECTIONS)
    reader = Reader.of("fen", "handbook", "alice")
    assert "27" in ask(reader, QUESTION).answer
    before = chunks()
    assert len(before) == report.chunks
    with transaction(Asker("admin")) as connection:
        connection.execute(
            text(
                "UPDATE document SET text = replace(text, '27 days', '43 days')"
                " WHERE tenant_id = :tenant"
            ),
            {"tenant": reader.asker.tenant},
        )
    assert wait_until(lambda: not any(edges.queue().values()), 120)
    after = chunks()
    assert len(after.keys() - before.keys()) == len(before.keys() - after.keys()) == 1
    assert all(before[chunk] == after[chunk] for chunk in before.keys() & after.keys())
    answer = ask(reader, QUESTION).answer
    assert "43" in answer
    assert "27" not in answer
