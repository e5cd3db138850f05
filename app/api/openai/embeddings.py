"""Texts -> the vectors that a bank is searched with, as OpenAI's embeddings."""

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from torch import Tensor

from app.access.identity import Identity
from app.access.quota import count_tokens
from app.api.http.bridge import Bridge
from app.api.http.caller import Reading
from app.api.http.errors import responses
from app.api.http.fields import Text
from app.api.openai.models import reader
from app.db.session import transaction
from app.errors import UsageError
from app.runtime.models import models

router = APIRouter(prefix="/v1", tags=["embeddings"])
_MOST = 2048


class EmbeddingRequest(BaseModel):
    """Texts for the embedder of a bank. `dimensions` must be those that it has."""

    model: Annotated[Text, Field(min_length=1, max_length=500)]
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=_MOST)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def embedded(self, who: Identity) -> tuple[Tensor, int]:
        """(texts, dimensions) and the tokens that were read. Counts as a request."""
        embedder = models().embedder
        if self.dimensions not in (None, embedder.dimensions):
            raise UsageError(f"vectors of this bank have {embedder.dimensions} dimensions")
        texts = self._texts
        if not all(text.strip() for text in texts):
            raise UsageError("an empty text has no vector: leave it out of the input")
        reader(who, self.model)[0].begin()
        vectors, tokens = embedder.embed(texts), embedder.count_tokens(texts)
        with transaction(who.asker) as connection:
            count_tokens(connection, tokens)
        return vectors, tokens

    @property
    def _texts(self) -> Sequence[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(BaseModel):
    """A vector of length 1: numbers, or their bytes (float32, little endian) in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post("/embeddings", responses=responses(404))
async def embeddings(body: EmbeddingRequest, who: Reading, request: Request) -> EmbeddingList:
    """Vectors of texts. Longer ones than the embedder reads are cut."""
    bridge: Bridge = request.app.state.bridge
    vectors, tokens = await bridge.embed(who.tenant, lambda: body.embedded(who))
    rows = [_written(row, body.encoding_format) for row in vectors]
    return EmbeddingList(
        data=[Embedding(index=index, embedding=row) for index, row in enumerate(rows)],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _written(row: Tensor, form: Literal["float", "base64"]) -> list[float] | str:
    if form == "float":
        return [float(value) for value in row]
    return base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()
