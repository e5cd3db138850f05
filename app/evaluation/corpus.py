"""Passages in chunks, and the search among them that a bank would do, exact.

Chunks are split as a worker splits documents and their vectors are kept on disk, so that a corpus
is embedded once for an embedder, and a run that was cut off goes on where it stopped.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.evaluation.metrics import contains
from app.evaluation.questions import Passage
from app.ingest.split import CountTokens, split
from app.search.rank import POOL, best

_SHARD = 1024
_WORD = re.compile(r"\w+")


class Embeds(Protocol):
    """Texts -> unit vectors, (texts, dimensions), float32."""

    def embed(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Piece:
    """A chunk of a passage: what is encoded and found."""

    passage: str
    text: str


class Vectors:
    """Vectors of texts, made once and kept in a folder, a file for every 1,024 texts."""

    def __init__(self, embedder: Embeds, name: str, folder: Path) -> None:
        """`name`: the embedder's fingerprint."""
        self._embedder, self._name, self._folder = embedder, name, folder

    def of(self, texts: Sequence[str], seen: Callable[[int], None] = lambda _: None) -> Tensor:
        """(len(texts), dimensions), float32. `seen` is told how many more are done."""
        if not texts:
            raise ValueError("vectors of no texts")
        found = []
        for start in range(0, len(texts), _SHARD):
            some = texts[start : start + _SHARD]
            found.append(self._shard(some))
            seen(len(some))
        return torch.cat(found)

    def _shard(self, texts: Sequence[str]) -> Tensor:
        digest = hashlib.sha256(self._name.encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        file = self._folder / f"{digest.hexdigest()[:32]}.safetensors"
        try:
            return load_file(file)["vectors"]
        except (OSError, SafetensorError, KeyError):
            vectors = self._embedder.embed(texts)
        self._folder.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        save_file({"vectors": vectors}, new)
        new.replace(file)
        return vectors


@dataclass(frozen=True)
class Hits:
    """The pieces for each question, best first, and their scores; both (questions, k).

    A score is the cosine where the nearest are searched for, else the relevance (app/search/rank).
    """

    pieces: list[list[int]]
    scores: list[list[float]]


class Corpus:
    """Pieces of passages and their vectors, (pieces, dimensions)."""

    def __init__(self, pieces: Sequence[Piece], vectors: Tensor) -> None:
        self.pieces, self.vectors = pieces, vectors
        self._of: dict[str, list[int]] = {}
        for index, piece in enumerate(pieces):
            self._of.setdefault(piece.passage, []).append(index)

    def best(
        self,
        questions: Sequence[str],
        vectors: Tensor,
        k: int,
        among: Sequence[Sequence[int]] | None = None,
    ) -> Hits:
        """The k best pieces of each question, in the order in which a bank would bring them.

        vectors: those of the questions; among: as in `search`.
        """
        near = self.search(vectors, max(k, POOL), among)
        pieces, scores = [], []
        for question, some, cosines in zip(questions, near.pieces, near.scores, strict=True):
            chosen = best(question, [self.pieces[i].text for i in some], cosines, k)
            pieces.append([some[one.index] for one in chosen])
            scores.append([one.relevance for one in chosen])
        return Hits(pieces, scores)

    def search(
        self, questions: Tensor, k: int, among: Sequence[Sequence[int]] | None = None
    ) -> Hits:
        """The k nearest pieces of each question's vector, equal ones in the order of the corpus.

        among: for each question the pieces that count; all of them by default.
        """
        if among is not None:
            return self._search_among(questions, k, among)
        k = min(k, len(self.pieces))
        pieces, scores = [], []
        for start in range(0, len(questions), 256):
            cosine = questions[start : start + 256] @ self.vectors.T
            cosine, nearest = cosine.sort(dim=1, descending=True, stable=True)
            pieces += nearest[:, :k].tolist()
            scores += cosine[:, :k].tolist()
        return Hits(pieces, scores)

    def _search_among(self, questions: Tensor, k: int, among: Sequence[Sequence[int]]) -> Hits:
        pieces, scores = [], []
        for vector, some in zip(questions, among, strict=True):
            cosine, order = (self.vectors[list(some)] @ vector).sort(descending=True, stable=True)
            pieces.append([some[i] for i in order[:k].tolist()])
            scores.append(cosine[:k].tolist())
        return Hits(pieces, scores)

    def of(self, passage: str) -> list[int]:
        """Indices of a passage's pieces, in the order of its text."""
        return self._of.get(passage, [])

    def gold(self, passages: Sequence[str], answers: Sequence[str], question: str) -> list[int]:
        """The piece of each gold passage that a question is answered from.

        That is one that holds an answer, or else the one that shares most words with question and
        answers: a passage of several chunks says it in one of them.
        """
        wanted = set(_WORD.findall(" ".join([question, *answers]).lower()))
        found = []
        for passage in passages:
            if here := self.of(passage):
                found.append(max(here, key=lambda i: self._fit(i, answers, wanted)))
        return found

    def _fit(self, index: int, answers: Sequence[str], wanted: set[str]) -> tuple[float, int]:
        text = self.pieces[index].text
        said = contains(text, answers) if answers else 0.0
        return said, len(wanted & set(_WORD.findall(text.lower())))


def pieces_of(passages: Iterable[Passage], count: CountTokens) -> list[Piece]:
    """The chunks of passages, each passage once. `count`: tokens of a chunk."""
    found: dict[str, list[Piece]] = {}
    for passage in passages:
        if passage.id not in found:
            chunks = split(passage.title, passage.text, count)
            found[passage.id] = [Piece(passage.id, chunk.text) for chunk in chunks]
    return [piece for some in found.values() for piece in some]
