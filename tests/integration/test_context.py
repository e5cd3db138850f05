"""A bank whose chunks have seen what stands before them, from ingest to memory."""

import pytest
import torch
from sqlalchemy.exc import DatabaseError

from app.bank.documents import Piece
from app.db.session import Asker
from app.errors import UsageError
from app.ingest.service import pieces_of
from app.memory.codec.pack import pack, unpack
from app.queue import outbox
from app.runtime.identity import codec, compactor, count_tokens, profile
from app.runtime.models import models
from app.settings import settings
from tests.conftest import PROFILE, Company, administer, ask
from workers import encoding

TEXT = "\n\n".join(
    f"Rule {i}. " + f"On day {i} of the month the {word} is to be shown at the gate. " * 6
    for i, word in enumerate(("badge", "permit", "letter", "key"))
)


@pytest.fixture
def in_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMBANK_CONTEXT", "40")
    monkeypatch.setenv("MEMBANK_DTYPE", "float32")
    monkeypatch.setenv("MEMBANK_COMPACTION", "reconstruction:0.5+match")
    monkeypatch.setenv("MEMBANK_CODEC", "int8")
    cached = (settings, profile, models, codec, compactor)
    for one in cached:
        one.cache_clear()
    yield  # type: ignore[misc]
    for one in cached:
        one.cache_clear()


@pytest.mark.usefixtures("in_context")
def test_a_workers_memory_has_seen_what_stands_before_it_and_is_compacted(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = pieces_of("", TEXT, count_tokens, settings().context)
    assert len(pieces) > 2
    monkeypatch.setattr("tests.conftest.pieces_of", lambda body: pieces)
    company.store("rules", TEXT)
    work = outbox.claim(PROFILE, 100, 60.0)
    assert encoding.encode(work) == len(pieces)
    stored = ask(
        Asker("admin"),
        "SELECT c.text, c.before, b.payload FROM memory_blob b JOIN chunk c"
        " ON c.tenant_id = b.tenant_id AND c.id = b.chunk_id",
    )
    m = models()
    for text, before, payload in stored:
        chunk, front = m.prompt.chunk(text), m.prompt.chunk(before) if before else []
        dense = m.encoder.encode([chunk], before=[front[-40:]])
        (expected,) = compactor().compact(m.encoder, [chunk], dense)
        kv = unpack(payload, m.profile.id, codec())
        assert kv.entries == -(-len(chunk) // 2)
        assert (kv.keys - expected.keys).abs().max() < 0.05 * expected.keys.abs().max()
        assert torch.equal(kv.offsets, expected.offsets)  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_context")
def test_the_profile_names_context_and_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile().context == "40 tokens before it"
    assert profile().selection == "reconstruction:0.5+match"
    monkeypatch.setenv("MEMBANK_COMPACTION", "layers:0-9")
    monkeypatch.setenv("MEMBANK_CODEC", "auto")
    for one in (settings, profile, codec, compactor):
        one.cache_clear()
    with pytest.raises(UsageError, match="MEMBANK_COMPACTION=layers:0-9 drops layers"):
        profile()


def test_a_profile_without_context_sees_nothing_of_what_a_chunk_keeps_before_it(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change to a smaller context."""
    piece = Piece("The gate opens at seven.", "Visitors wear a badge.\n\n", "", 0, 24, "h")
    monkeypatch.setattr("tests.conftest.pieces_of", lambda body: [piece])
    company.store("rules", piece.text)
    assert encoding.encode(outbox.claim(PROFILE, 100, 60.0)) == 1
    m = models()
    chunk = m.prompt.chunk(piece.text)
    (alone,) = compactor().compact(m.encoder, [chunk], m.encoder.encode([chunk]))
    [(payload,)] = ask(Asker("admin"), "SELECT payload FROM memory_blob")
    assert payload == pack(alone, m.profile.id, m.codec)


def test_what_stands_before_a_chunk_never_changes(company: Company) -> None:
    company.store("rules", "one rule")
    with pytest.raises(DatabaseError, match="never changes"):
        administer("UPDATE chunk SET before = 'another'")
