"""A bank whose memories are compacted, from ingest to memory."""

from collections.abc import Iterator

import pytest
import torch

from app.db.session import Asker
from app.errors import UsageError
from app.ingest.storing import pieces_of
from app.memory.codec.pack import unpack
from app.queue import outbox
from app.runtime.identity import codec_name, compactor, count_tokens, profile
from app.runtime.models import codec, models
from app.settings import settings
from tests.conftest import PROFILE, Company, ask
from workers import encoding

TEXT = "\n\n".join(
    f"Rule {i}. " + f"On day {i} of the month the {word} is to be shown at the gate. " * 6
    for i, word in enumerate(("badge", "permit", "letter", "key"))
)
CACHED = (settings, profile, models, codec_name, codec, compactor)


@pytest.fixture(autouse=True)
def _compacted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MEMBANK_DTYPE", "float32")
    monkeypatch.setenv("MEMBANK_COMPACTION", "reconstruction:0.5+match")
    monkeypatch.setenv("MEMBANK_CODEC", "int8")
    for one in CACHED:
        one.cache_clear()
    yield
    for one in CACHED:
        one.cache_clear()


def test_a_workers_memory_is_compacted_as_the_settings_say(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = pieces_of("", TEXT, count_tokens)
    assert len(pieces) > 2
    monkeypatch.setattr("tests.conftest.pieces_of", lambda body: pieces)
    company.store("rules", TEXT)
    assert encoding.encode(outbox.claim(PROFILE, 100, 60.0)) == len(pieces)
    stored = ask(
        Asker("admin"),
        "SELECT c.text, b.payload FROM memory_blob b JOIN chunk c"
        " ON c.tenant_id = b.tenant_id AND c.id = b.chunk_id",
    )
    assert len(stored) == len(pieces)
    m = models()
    for text, payload in stored:
        chunk = m.prompt.chunk(text)
        (expected,) = compactor().compact(m.encoder, [chunk], m.encoder.encode([chunk]))
        kv = unpack(payload, m.profile.id, codec())
        assert kv.entries == -(-len(chunk) // 2)
        assert (kv.keys - expected.keys).abs().max() < 0.05 * expected.keys.abs().max()
        assert torch.equal(kv.offsets, expected.offsets)  # type: ignore[arg-type]


def test_the_profile_names_the_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile().selection == "reconstruction:0.5+match"
    monkeypatch.setenv("MEMBANK_COMPACTION", "layers:0-9")
    monkeypatch.setenv("MEMBANK_CODEC", "auto")
    for one in CACHED:
        one.cache_clear()
    with pytest.raises(UsageError, match="MEMBANK_COMPACTION=layers:0-9 drops layers"):
        profile()
