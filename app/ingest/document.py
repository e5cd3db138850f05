"""The results of reading: documents, and failures that name what could not be read."""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """A text to remember. `allow` and `tenant` are None if the source does not state them."""

    id: str
    source: str
    title: str
    text: str
    allow: tuple[str, ...] | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    tenant: str | None = None


@dataclass(frozen=True)
class Failure:
    """A file, page or line that yielded no document; `error` is one line that names it."""

    source: str
    error: str


Results = Iterator[Document | Failure]


def failure(place: str, problem: str) -> Failure:
    """A Failure at `place`, with both texts made printable on one line of any terminal."""
    name = _printable(place)
    return Failure(name, f"{name}: {_printable(problem)}")


def _printable(text: str) -> str:
    """The text on one line, with characters escaped that a terminal or UTF-8 cannot take."""
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else ascii(c)[1:-1] for c in text)


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def unparsable(error: Exception) -> str:
    """A parser's error on one line of limited length."""
    reason = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
