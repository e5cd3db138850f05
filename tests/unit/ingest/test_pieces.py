"""What a chunk is kept with: its text, and what it is to have in sight while it is encoded."""

from app.ingest.service import pieces_of

PARAGRAPHS = [" ".join(f"{name}{i}" for i in range(9)) + "." for name in "abcdef"]
TEXT = "\n\n".join(PARAGRAPHS)


def words(text: str) -> int:
    """So that 128 tokens hold one paragraph."""
    return 10 * len(text.split())


def test_without_context_nothing_stands_before_a_chunk() -> None:
    pieces = pieces_of("", TEXT, words)
    assert [piece.text for piece in pieces] == PARAGRAPHS
    assert {piece.before for piece in pieces} == {""}


def test_whole_chunks_that_hold_the_context_stand_before_a_chunk() -> None:
    pieces = pieces_of("", TEXT, words, context=100)
    fronts = [PARAGRAPHS[max(0, i - 2) : i] for i in range(len(PARAGRAPHS))]
    assert [p.before for p in pieces] == ["".join(f"{one}\n\n" for one in f) for f in fronts]


def test_an_edit_changes_what_has_it_in_sight_and_nothing_else() -> None:
    before = pieces_of("", TEXT, words, context=100)
    after = pieces_of("", TEXT.replace("b3", "b33"), words, context=100)
    changed = [a.hash != b.hash for a, b in zip(before, after, strict=True)]
    assert changed == [False, True, True, True, False, False]
    alone = pieces_of("", TEXT, words)
    assert [a.hash == b.hash for a, b in zip(alone, before, strict=True)] == [True] + [False] * 5
