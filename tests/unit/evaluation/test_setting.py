"""Settings: named by texts, and the bytes that they count are those that are stored."""

from pathlib import Path

import pytest
import torch

from app.errors import UsageError
from app.memory.codec.pack import SIMPLE, pack, unpack
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.load import LanguageModel
from app.memory.sparse.compact import Compactor
from benchmarks.setting import DEFAULT, DENSE, Encoded, Settings
from tests.unit.memory.families import tiny

CHUNKS = [list(range(10, 26)), list(range(30, 39))]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Encoder(LanguageModel(tiny("llama"), None), [5, 6, 7])
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def dense(encoder: Encoder) -> list[KV]:
    return encoder.encode(CHUNKS)


def applied(encoder: Encoder, name: str, dense: list[KV]) -> tuple[list[KV], int]:
    settings = Settings(encoder, "0" * 64, Path("/nowhere")).of([name])
    return settings[-1].apply(Encoded(CHUNKS, dense))


def test_dense_comes_first_and_each_name_once(encoder: Encoder) -> None:
    settings = Settings(encoder, "0" * 64, Path("/nowhere"))
    names = [s.name for s in settings.of(["int8", "dense", "int8", "bfloat16", "auto", "rotated4"])]
    assert names == [DENSE, "int8", "bfloat16", "rotated4"]
    assert len(settings.of(DEFAULT)) > len(SIMPLE)


@pytest.mark.parametrize("name", ["int9", "nothing:0.5@int8", "all@", "all@dense", ""])
def test_an_unknown_codec_or_compaction_is_refused(encoder: Encoder, name: str) -> None:
    with pytest.raises(UsageError, match=r"codec|compaction"):
        Settings(encoder, "0" * 64, Path("/nowhere")).of([name])


def test_dense_is_what_was_encoded(encoder: Encoder, dense: list[KV]) -> None:
    back, size = applied(encoder, "dense", dense)
    assert back == dense
    assert size == sum(kv.keys.nbytes + kv.values.nbytes for kv in dense)


def test_bfloat16_takes_two_bytes_a_number(encoder: Encoder, dense: list[KV]) -> None:
    back, size = applied(encoder, "bfloat16", dense)
    assert size == sum(2 * (kv.keys.numel() + kv.values.numel()) for kv in dense)
    for kv, was in zip(back, dense, strict=True):
        assert torch.equal(kv.keys, was.keys.bfloat16().float())
        assert torch.equal(kv.values, was.values.bfloat16().float())


@pytest.mark.parametrize("name", ["int8", "rotated4"])
def test_a_codecs_bytes_are_whole_blobs(encoder: Encoder, dense: list[KV], name: str) -> None:
    back, size = applied(encoder, name, dense)
    payloads = [pack(kv, "dense", SIMPLE[name]) for kv in dense]
    assert size == sum(map(len, payloads))
    for kv, payload in zip(back, payloads, strict=True):
        expected = unpack(payload, "dense", SIMPLE[name])
        assert torch.equal(kv.keys, expected.keys)
        assert torch.equal(kv.values, expected.values)


def test_compacted_memories_go_through_the_codec(encoder: Encoder, dense: list[KV]) -> None:
    back, size = applied(encoder, "column-sums:0.5@int8", dense)
    kept = Compactor.parse("column-sums:0.5").compact(encoder, CHUNKS, dense)
    assert [kv.entries for kv in back] == [8, 5]
    assert [kv.length for kv in back] == [16, 9]
    assert size == sum(len(pack(kv, "dense")) for kv in kept)
