"""Fields that several requests share, with their OpenAPI descriptions."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    Strict,
    WithJsonSchema,
)

from app.errors import UsageError

_CHUNK_TOKENS = 128


def _whole(text: str) -> str:
    # JSON can write half a character, which nothing behind it can hold.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a character is cut in half: send valid Unicode")
    return text


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("has a NUL character: remove it")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable characters are needed")
    return text


def _without(characters: str) -> Any:
    return Field(json_schema_extra={"pattern": f"^[^{characters}]*$"})


Text = Annotated[str, AfterValidator(_whole)]
Storable = Annotated[Text, AfterValidator(_storable), _without(r"\x00")]
Printable = Annotated[str, AfterValidator(_printable), _without(r"\x00-\x1f\x7f-\x9f")]
Name = Annotated[Printable, Field(min_length=1, max_length=200)]
"""Of a principal, a group or a bank."""
MetadataKey = Annotated[Storable, Field(min_length=1, max_length=64)]
Value = (
    Annotated[bool, Strict()]
    | Annotated[int, Strict()]
    | Annotated[float, Strict(), Field(allow_inf_nan=False)]
    | Annotated[Storable, Strict(), Field(max_length=512)]
)
Attributes = Annotated[dict[MetadataKey, Value], Field(max_length=16)]
"""Of a file: the metadata of its documents, by which a search can be filtered."""
Metadata = Annotated[
    dict[MetadataKey, Annotated[Storable, Field(max_length=512)]], Field(max_length=16)
]
FileId = Annotated[Storable, Field(min_length=1, max_length=4000)]
Expiry = Annotated[Any, WithJsonSchema({"type": "null"})]
"""Only null is supported: see check_expiry."""


class StaticSizes(BaseModel):
    """Tokens of a chunk, and of its overlap with the next one."""

    max_chunk_size_tokens: Annotated[int, Field(ge=100, le=4096)] = _CHUNK_TOKENS
    chunk_overlap_tokens: Annotated[int, Field(ge=0, le=2048)] = 0


class AutoChunking(BaseModel):
    """As the bank splits documents."""

    type: Literal["auto"] = "auto"


class StaticChunking(BaseModel):
    """Chunks have at most 128 tokens, end where sentences do, and do not overlap."""

    type: Literal["static"] = "static"
    static: StaticSizes = StaticSizes()


Chunking = Annotated[AutoChunking | StaticChunking, Field(discriminator="type")]


def check_chunking(chosen: Chunking | None) -> None:
    """Raises UsageError for chunks that a bank cannot make."""
    if not isinstance(chosen, StaticChunking):
        return
    if chosen.static.max_chunk_size_tokens < _CHUNK_TOKENS or chosen.static.chunk_overlap_tokens:
        raise UsageError(
            f"chunks here have up to {_CHUNK_TOKENS} tokens and do not overlap: leave"
            " chunking_strategy out, or give a max_chunk_size_tokens of"
            f" {_CHUNK_TOKENS} or more and a chunk_overlap_tokens of 0"
        )


def check_expiry(given: object) -> None:
    """Raises UsageError when an expiry is given: nothing here expires."""
    if given is not None:
        raise UsageError("expires_after cannot be kept: nothing here expires; delete it instead")
