"""Fields that several requests have."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, Strict

from app.errors import UsageError

_CHUNK_TOKENS = 128


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("has a NUL character: remove it")
    return text


Text = Annotated[str, AfterValidator(_storable)]
Key = Annotated[Text, Field(min_length=1, max_length=64)]
Value = (
    Annotated[bool, Strict()]
    | Annotated[int, Strict()]
    | Annotated[float, Strict(), Field(allow_inf_nan=False)]
    | Annotated[Text, Strict(), Field(max_length=512)]
)
Attributes = Annotated[dict[Key, Value], Field(max_length=16)]
"""Of a file: the metadata of its documents, by which a search can be filtered."""
Metadata = Annotated[dict[Key, Annotated[Text, Field(max_length=512)]], Field(max_length=16)]
FileId = Annotated[Text, Field(min_length=1, max_length=4000)]


class StaticSizes(BaseModel):
    """Tokens of a chunk and of what it shares with the next."""

    max_chunk_size_tokens: Annotated[int, Field(ge=100, le=4096)] = _CHUNK_TOKENS
    chunk_overlap_tokens: Annotated[int, Field(ge=0, le=2048)] = 0


class AutoChunking(BaseModel):
    """As the bank does it."""

    type: Literal["auto"] = "auto"


class StaticChunking(BaseModel):
    """Chunks have at most 128 tokens, end where sentences do, and do not overlap."""

    type: Literal["static"] = "static"
    static: StaticSizes = StaticSizes()


Chunking = Annotated[AutoChunking | StaticChunking, Field(discriminator="type")]


def check_chunking(chosen: Chunking | None) -> None:
    """Raises UsageError for chunks that a bank does not make."""
    if not isinstance(chosen, StaticChunking):
        return
    if chosen.static.max_chunk_size_tokens < _CHUNK_TOKENS or chosen.static.chunk_overlap_tokens:
        raise UsageError(
            f"chunks here have up to {_CHUNK_TOKENS} tokens and do not overlap: leave"
            " chunking_strategy out, or give a max_chunk_size_tokens of"
            f" {_CHUNK_TOKENS} or more and a chunk_overlap_tokens of 0"
        )


def check_expiry(given: object) -> None:
    """Raises UsageError: nothing here goes away by itself."""
    if given is not None:
        raise UsageError("expires_after cannot be kept: nothing here expires; delete it instead")
