"""Memories without a model: small, real blobs, read the way that answers read them."""

import hashlib

import torch

from app.answer.retrieval import Request, load
from app.memory.codec.pack import SIMPLE, pack, unpack
from app.memory.kv import KV
from app.queue import outbox
from app.queue.encoding import Encoded, chunk_texts, finish_encoding
from app.search.search import Passage, search
from tests.conftest import NORTH, PROFILE, Company, split

CODEC = SIMPLE["int8"]


def memory_of(body: str) -> KV:
    """What is encoded for a text: numbers that depend on all of it."""
    seed = int.from_bytes(hashlib.sha256(body.encode()).digest()[:4], "big")
    both = torch.randn(2, 2, 1, 8, 16, generator=torch.Generator().manual_seed(seed))
    return KV(both[0], both[1])


def learn() -> int:
    """Do what is due as a worker does, with real blobs; how many memories were written."""
    written = 0
    while work := outbox.claim(PROFILE, 1000, 60.0):
        for one in work:
            if one.chunk is None:
                split(one)
                continue
            text = chunk_texts(one.tenant, [one])[one.chunk]
            payload = pack(memory_of(text), PROFILE, CODEC)
            written += finish_encoding(one.tenant, PROFILE, [Encoded(one, NORTH, payload)])
    return written


def reader_of(company: Company, name: str = "alice", *groups: str) -> Request:
    return Request(company.reader(name, *groups), company.bank.id, PROFILE, CODEC)


def found(reader: Request) -> list[Passage]:
    return search(reader.asker, reader.bank, PROFILE, NORTH, 100)


def read(reader: Request, passages: list[Passage]) -> list[KV]:
    return load(reader, passages, torch.float32)


def right(passages: list[Passage], memories: list[KV]) -> bool:
    """Whether each memory is that of its passage's text, to the bit."""
    expected = [unpack(pack(memory_of(p.text), PROFILE, CODEC), PROFILE, CODEC) for p in passages]
    return len(expected) == len(memories) and all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(expected, memories, strict=True)
    )
