"""Splits a document into chunks that follow its structure and fit a token limit."""

import bisect
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from app.ingest.blocks import Block, sections

CountTokens = Callable[[str], int]

# No tokenizer packs more text than this into a token, except for junk such as a long row of dashes.
# Longer stretches are cut without being counted, so that no more text is ever counted at once than
# a chunk could hold.
_MAX_CHARS_PER_TOKEN = 32
_MIN_TOKENS = 16

# A stretch that does not fit is cut after a match. Every pattern takes linear time on any text,
# even one without a single match.
_SENTENCES = re.compile(r"""[.!?…]["'”’)\]*_]{0,3}\s++(?![a-z])|[。！？｡][」』”）]{0,3}""")
_LINES = re.compile(r"\n+")
_PHRASES = re.compile(r"(?s:.{24})\S*\s*")
_WORDS = re.compile(r"\s+")
_STRETCHES = re.compile(r"(?s:.{8})")
_CHARACTERS = re.compile(r"(?s:.)")
_Cuts = tuple[re.Pattern[str], ...]
_INSIDE_WORDS: _Cuts = (_PHRASES, _WORDS, _STRETCHES, _CHARACTERS)
_PROSE_CUTS: _Cuts = (_SENTENCES, _LINES, *_INSIDE_WORDS)
_ROW_CUTS: _Cuts = (_LINES, _SENTENCES, *_INSIDE_WORDS)


def _cuts(block: Block) -> _Cuts:
    return _ROW_CUTS if block.has_rows else _PROSE_CUTS


@dataclass(frozen=True)
class Chunk:
    """A piece of a document.

    `text` is exactly what is encoded: a header line (title and headings), a newline, and
    `document_text[start:end]`. `heading` is the whole heading path below the title.
    """

    text: str
    heading: str
    start: int
    end: int


def chunk_hash(text: str) -> str:
    """SHA-256 of the text in UTF-8, as hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def split(title: str, text: str, count: CountTokens, max_tokens: int = 128) -> list[Chunk]:
    """Split Markdown or plain text into chunks, in the order of the text.

    `count(chunk.text) <= max_tokens` holds for each chunk. Every character other than white space
    is in exactly one chunk, except headings with something below them: these become header lines.
    A heading with nothing below it is text of the section around it.

    Raises ValueError if max_tokens is below 16, or if a single character with its header line has
    more than max_tokens according to `count`.
    """
    if max_tokens < _MIN_TOKENS:
        raise ValueError(f"max_tokens is {max_tokens}, but must be at least {_MIN_TOKENS}")
    packer = _Packer(title, text, count, max_tokens)
    for path, blocks in sections(text):
        packer.add(path, blocks)
    return packer.chunks


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of text that should fit a chunk, and the cuts to try next if it does not."""

    start: int
    end: int
    cost: int
    cuts: _Cuts


@dataclass(frozen=True, slots=True)
class _Header:
    line: str
    heading: str
    cost: int


class _Packer:
    """Fills chunks with the pieces of one document.

    Each piece is counted once, and counts are added up with an uncertainty of one token per join.
    The actual text is counted only where that uncertainty matters, and for each finished chunk.
    """

    def __init__(self, title: str, text: str, count: CountTokens, limit: int) -> None:
        self.chunks: list[Chunk] = []
        self._text = text
        self._count = count
        self._limit = limit
        self._max_chars = limit * _MAX_CHARS_PER_TOKEN
        self._headers = _Headers(title, count, limit // 3)

    def add(self, path: list[str], blocks: list[Block]) -> None:
        """Append the chunks of one section."""
        header = self._headers.of(path)
        room = self._limit - header.cost - 1
        self._pack(
            header,
            (
                piece
                for block in blocks
                for piece in self._pieces(block.start, block.end, room, _cuts(block))
            ),
        )

    def _pieces(self, start: int, end: int, room: int, cuts: _Cuts) -> Iterator[_Piece]:
        start, end = self._trim(start, end)
        if start == end:
            return
        if end - start <= self._max_chars:
            cost = self._count(self._text[start:end])
            if cost <= room:
                yield _Piece(start, end, cost, cuts)
                return
        if not cuts:
            raise ValueError(
                f"a single character ({self._text[start]!r}) does not fit {self._limit} tokens"
            )
        at = start
        for match in cuts[0].finditer(self._text, start, end):
            yield from self._pieces(at, match.end(), room, cuts[1:])
            at = match.end()
        yield from self._pieces(at, end, room, cuts[1:])

    def _trim(self, start: int, end: int) -> tuple[int, int]:
        while start < end and self._text[start].isspace():
            start += 1
        while start < end and self._text[end - 1].isspace():
            end -= 1
        return start, end

    def _pack(self, header: _Header, pieces: Iterable[_Piece]) -> None:
        draft = _Draft(header)
        for piece in pieces:
            if not self._extend(draft, piece):
                self._close(draft)
                draft = _Draft(header)
                self._extend(draft, piece)
        if draft.pieces:
            self._close(draft)

    def _extend(self, draft: "_Draft", piece: _Piece) -> bool:
        if not draft.pieces:
            draft.accept(piece, piece.cost)
            return True
        gap_start = draft.pieces[-1].end
        if piece.end - draft.pieces[0].start > self._max_chars:
            return False
        cost = piece.cost
        if piece.start - gap_start > 2:
            cost += self._count(self._text[gap_start : piece.start])
        joins = draft.joins + 1
        if draft.known + draft.added + cost + joins <= self._limit:
            draft.accept(piece, cost)
            return True
        if draft.known + draft.added + cost - joins > self._limit:
            return False
        exact = self._count(self._render(draft.header, draft.pieces[0].start, piece.end))
        if exact > self._limit:
            return False
        draft.accept_counted(piece, exact)
        return True

    def _close(self, draft: "_Draft") -> None:
        start, end = draft.pieces[0].start, draft.pieces[-1].end
        text = self._render(draft.header, start, end)
        if draft.joins == 0 or self._count(text) <= self._limit:
            self.chunks.append(Chunk(text, draft.header.heading, start, end))
        elif len(draft.pieces) > 1:
            self._halve(draft)
        else:
            piece = draft.pieces[0]
            self._pack(draft.header, self._pieces(start, end, piece.cost - 1, piece.cuts))

    def _halve(self, draft: "_Draft") -> None:
        middle = len(draft.pieces) // 2
        for pieces in (draft.pieces[:middle], draft.pieces[middle:]):
            half = _Draft(draft.header)
            for piece in pieces:
                half.accept(piece, piece.cost)
            self._close(half)

    def _render(self, header: _Header, start: int, end: int) -> str:
        body = self._text[start:end]
        return f"{header.line}\n{body}" if header.line else body


class _Draft:
    """A chunk being filled: `known` tokens were counted, `added` tokens and `joins` came since."""

    def __init__(self, header: _Header) -> None:
        self.header = header
        self.pieces: list[_Piece] = []
        self.known = header.cost
        self.added = 0
        self.joins = 0

    def accept(self, piece: _Piece, cost: int) -> None:
        self.pieces.append(piece)
        self.added += cost
        self.joins += 1

    def accept_counted(self, piece: _Piece, exact: int) -> None:
        self.pieces.append(piece)
        self.known, self.added, self.joins = exact, 0, 0


class _Headers:
    """Makes the header line of a section, at most `budget` tokens long."""

    def __init__(self, title: str, count: CountTokens, budget: int) -> None:
        self._count = count
        self._budget = budget
        words = " ".join(title.split())
        self._same = words.casefold()
        self._title = self._shorten(words, budget)

    def of(self, path: list[str]) -> _Header:
        if path and path[0].casefold() == self._same:
            path = path[1:]
        line = self._line(path)
        cost = self._count(line + "\n") if line else 0
        return _Header(line, " > ".join(path), cost)

    def _line(self, path: list[str]) -> str:
        for first in range(max(1, len(path))):
            line = self._join(self._title, *path[first:])
            if self._count(line) <= self._budget:
                return line
        last = self._shorten(path[-1], self._budget // 2) if path else ""
        title = self._shorten(self._title, self._budget - self._count(f" > {last}"))
        return self._shorten(self._join(title, last), self._budget)

    @staticmethod
    def _join(*parts: str) -> str:
        return " > ".join(part for part in parts if part)

    def _shorten(self, text: str, budget: int) -> str:
        """The longest start of the text that has at most `budget` tokens, ending with a word."""
        longest = min(len(text), max(budget, 0) * _MAX_CHARS_PER_TOKEN)
        if longest == len(text) and self._count(text) <= budget:
            return text
        size = bisect.bisect_right(
            range(1, longest + 1), budget, key=lambda size: self._count(text[:size])
        )
        if size < len(text) and not text[size].isspace() and " " in text[:size]:
            size = text.rindex(" ", 0, size)
        # A shorter text may need more tokens: "un" + "k" instead of "unk".
        while size and self._count(text[:size].rstrip()) > budget:
            size -= 1
        return text[:size].rstrip()
