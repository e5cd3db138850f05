"""What a chunk is kept with, and what an edit changes."""

from app.ingest.storing import pieces_of

PARAGRAPHS = [" ".join(f"{name}{i}" for i in range(9)) + "." for name in "abcdef"]
TEXT = "\n\n".join(PARAGRAPHS)


def words(text: str) -> int:
    """So that 128 tokens hold one paragraph."""
    return 10 * len(text.split())


def test_a_piece_is_its_chunk_and_where_it_stands() -> None:
    pieces = pieces_of("", TEXT, words)
    assert [piece.text for piece in pieces] == PARAGRAPHS
    assert [TEXT[piece.start : piece.end] for piece in pieces] == PARAGRAPHS


def test_an_edit_changes_the_hash_of_its_own_piece_alone() -> None:
    before = pieces_of("", TEXT, words)
    after = pieces_of("", TEXT.replace("b3", "b33"), words)
    changed = [a.hash != b.hash for a, b in zip(before, after, strict=True)]
    assert changed == [False, True, False, False, False, False]
