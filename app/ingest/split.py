"""Text -> chunks: pieces of a document that follow its structure and fit a token limit."""

import bisect
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

CountTokens = Callable[[str], int]

# No tokenizer packs more text than this into a token, save for junk such as a long row of dashes.
# Longer stretches are cut without being counted, so that no count ever sees more than one
# chunk could hold.
_MAX_CHARS_PER_TOKEN = 32
# A longer line that begins with `#` is a paragraph: a context line could not carry it.
_MAX_HEADING_CHARS = 300
_MIN_TOKENS = 16

_BLANK_LINES = re.compile(r"\s*\n")
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])\s")

# Where a stretch that does not fit is cut: behind each match. Every pattern is linear on any
# text, also on one without a single match.
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


@dataclass(frozen=True)
class Chunk:
    """A piece of a document.

    `text` is exactly what is encoded: a context line (title and headings), a newline, and
    `document_text[start:end]`. `heading` is the whole heading path below the title.
    """

    text: str
    heading: str
    start: int
    end: int


def chunk_hash(text: str) -> str:
    """SHA-256 of the text in UTF-8, as hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def first_heading(text: str) -> str | None:
    """The first heading of level 1 that stands outside of code, or None."""
    return next((_heading(text, block) for block in _blocks(text) if block.level == 1), None)


def split(title: str, text: str, count: CountTokens, max_tokens: int = 128) -> list[Chunk]:
    """Cut a Markdown or plain text into chunks, in the order of the text.

    `count(chunk.text) <= max_tokens` holds for each chunk. Every character that is not white
    space lies in exactly one, save for headings with something below them: these go into the
    context lines. A heading with nothing below it is text of the section around it.

    Raises ValueError if max_tokens is below 16, or if `count` gives a single character with
    its context line more than max_tokens.
    """
    if max_tokens < _MIN_TOKENS:
        raise ValueError(f"max_tokens is {max_tokens}, at least {_MIN_TOKENS} are needed")
    packer = _Packer(title, text, count, max_tokens)
    for path, blocks in _sections(text):
        packer.add(path, blocks)
    return packer.chunks


class _Kind(Enum):
    BLANK = auto()
    PROSE = auto()
    ITEM = auto()
    ROW = auto()
    FENCE = auto()
    CODE = auto()
    HEADING = auto()
    UNDERLINE = auto()


@dataclass(slots=True)
class _Block:
    """Lines that belong together; `level` is 1 to 6 for a heading and 0 for all others."""

    start: int
    end: int
    kind: _Kind
    level: int = 0
    lines: int = 1
    is_leaf: bool = False

    @property
    def cuts(self) -> _Cuts:
        return _ROW_CUTS if self.kind in (_Kind.ROW, _Kind.FENCE) else _PROSE_CUTS

    def takes(self, line: "_Block") -> bool:
        if line.kind is _Kind.CODE:
            return True
        if line.kind is _Kind.ROW:
            return self.kind is _Kind.ROW
        if line.kind in (_Kind.PROSE, _Kind.UNDERLINE):
            return self.kind in (_Kind.PROSE, _Kind.ITEM)
        return False

    def is_title_of(self, line: "_Block") -> bool:
        return (
            line.kind is _Kind.UNDERLINE
            and self.kind is _Kind.PROSE
            and self.lines == 1
            and self.end - self.start <= _MAX_HEADING_CHARS
        )


def _sections(text: str) -> Iterator[tuple[list[str], list[_Block]]]:
    """The blocks between two headings, each with the path of the headings above them."""
    path: list[tuple[int, str]] = []
    blocks: list[_Block] = []
    for block in _outline(text):
        if blocks and block.level and (not block.is_leaf or (path and path[-1][0] >= block.level)):
            yield [name for _, name in path], blocks
            blocks = []
        while block.level and path and path[-1][0] >= block.level:
            path.pop()
        if block.level and not block.is_leaf:
            path.append((block.level, _heading(text, block)))
        else:
            blocks.append(block)
    if blocks:
        yield [name for _, name in path], blocks


def _outline(text: str) -> Iterator[_Block]:
    """The blocks, with `is_leaf` set for the headings that have nothing below them."""
    previous: _Block | None = None
    for block in _blocks(text):
        if previous is not None:
            previous.is_leaf = 0 < block.level <= previous.level
            yield previous
        previous = block
    if previous is not None:
        previous.is_leaf = previous.level > 0
        yield previous


def _heading(text: str, block: _Block) -> str:
    line = text[block.start : block.end].strip()
    match = _ATX.match(line)
    line = line.split("\n", 1)[0] if match is None else re.sub(r"\s#+$", "", match[2])
    return " ".join(line.split())


def _blocks(text: str) -> Iterator[_Block]:
    current: _Block | None = None
    for line in _lines(text):
        if current is not None and current.is_title_of(line):
            yield _Block(current.start, line.end, _Kind.HEADING, line.level)
            current = None
        elif current is not None and current.takes(line):
            current.end = line.end
            current.lines += 1
        else:
            if current is not None:
                yield current
            current = None if line.kind is _Kind.BLANK else line
            if line.kind is not _Kind.HEADING:
                line.level = 0
    if current is not None:
        yield current


def _lines(text: str) -> Iterator[_Block]:
    """Each line as a block of its own, with what it is in Markdown."""
    fence = ""
    start = 0
    while start < len(text):
        blank = _BLANK_LINES.match(text, start)
        if blank is not None:
            yield _Block(start, blank.end() - 1, _Kind.CODE if fence else _Kind.BLANK)
            start = blank.end()
            continue
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        body = line.strip()
        if fence:
            yield _Block(start, end, _Kind.CODE)
            if body.startswith(fence) and not body.strip(fence[0]):
                fence = ""
        else:
            kind, level = _kind(line, body)
            yield _Block(start, end, kind, level)
            match = _FENCE.match(body) if kind is _Kind.FENCE else None
            fence = (match[1] or match[2]) if match else ""
        start = end + 1


def _kind(line: str, body: str) -> tuple[_Kind, int]:
    if not body:
        return _Kind.BLANK, 0
    first = body[0]
    if first in "`~" and _FENCE.match(body):
        return _Kind.FENCE, 0
    if first == "#":
        return _hash_kind(line)
    if first == "|":
        return _Kind.ROW, 0
    if first in "=-" and len(body) >= 3 and not body.strip(first):
        return _Kind.UNDERLINE, 1 if first == "=" else 2
    return (_Kind.ITEM if _ITEM.match(body) else _Kind.PROSE), 0


def _hash_kind(line: str) -> tuple[_Kind, int]:
    match = _ATX.match(line)
    if match is None or len(line) > _MAX_HEADING_CHARS or not match[2].strip("# \t"):
        return _Kind.PROSE, 0
    return _Kind.HEADING, len(match[1])


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of text that fits a chunk, with the cuts that are left if it turns out not to."""

    start: int
    end: int
    cost: int
    cuts: _Cuts


@dataclass(frozen=True, slots=True)
class _Context:
    line: str
    heading: str
    cost: int


class _Packer:
    """Fills chunks with the pieces of one document.

    Each piece is counted once and the counts are added up, with one token of doubt for every
    join; only where that doubt decides, and for each chunk in the end, the real text is counted.
    """

    def __init__(self, title: str, text: str, count: CountTokens, limit: int) -> None:
        self.chunks: list[Chunk] = []
        self._text = text
        self._count = count
        self._limit = limit
        self._max_chars = limit * _MAX_CHARS_PER_TOKEN
        self._contexts = _Contexts(title, count, limit // 3)

    def add(self, path: list[str], blocks: list[_Block]) -> None:
        """Append the chunks of one section."""
        context = self._contexts.of(path)
        room = self._limit - context.cost - 1
        self._pack(
            context,
            (
                piece
                for block in blocks
                for piece in self._pieces(block.start, block.end, room, block.cuts)
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

    def _pack(self, context: _Context, pieces: Iterable[_Piece]) -> None:
        draft = _Draft(context)
        for piece in pieces:
            if not self._extend(draft, piece):
                self._close(draft)
                draft = _Draft(context)
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
        exact = self._count(self._render(draft.context, draft.pieces[0].start, piece.end))
        if exact > self._limit:
            return False
        draft.accept_counted(piece, exact)
        return True

    def _close(self, draft: "_Draft") -> None:
        start, end = draft.pieces[0].start, draft.pieces[-1].end
        text = self._render(draft.context, start, end)
        if draft.joins == 0 or self._count(text) <= self._limit:
            self.chunks.append(Chunk(text, draft.context.heading, start, end))
        elif len(draft.pieces) > 1:
            self._halve(draft)
        else:
            piece = draft.pieces[0]
            self._pack(draft.context, self._pieces(start, end, piece.cost - 1, piece.cuts))

    def _halve(self, draft: "_Draft") -> None:
        middle = len(draft.pieces) // 2
        for pieces in (draft.pieces[:middle], draft.pieces[middle:]):
            half = _Draft(draft.context)
            for piece in pieces:
                half.accept(piece, piece.cost)
            self._close(half)

    def _render(self, context: _Context, start: int, end: int) -> str:
        body = self._text[start:end]
        return f"{context.line}\n{body}" if context.line else body


class _Draft:
    """A chunk in the making: `known` tokens counted, `added` and `joins` since then."""

    def __init__(self, context: _Context) -> None:
        self.context = context
        self.pieces: list[_Piece] = []
        self.known = context.cost
        self.added = 0
        self.joins = 0

    def accept(self, piece: _Piece, cost: int) -> None:
        self.pieces.append(piece)
        self.added += cost
        self.joins += 1

    def accept_counted(self, piece: _Piece, exact: int) -> None:
        self.pieces.append(piece)
        self.known, self.added, self.joins = exact, 0, 0


class _Contexts:
    """Makes the context line of a section, at most `budget` tokens long."""

    def __init__(self, title: str, count: CountTokens, budget: int) -> None:
        self._count = count
        self._budget = budget
        words = " ".join(title.split())
        self._same = words.casefold()
        self._title = self._shorten(words, budget)

    def of(self, path: list[str]) -> _Context:
        if path and path[0].casefold() == self._same:
            path = path[1:]
        line = self._line(path)
        cost = self._count(line + "\n") if line else 0
        return _Context(line, " > ".join(path), cost)

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
        """The longest beginning of the text that has at most `budget` tokens, at a word's end."""
        longest = min(len(text), max(budget, 0) * _MAX_CHARS_PER_TOKEN)
        if longest == len(text) and self._count(text) <= budget:
            return text
        size = bisect.bisect_right(
            range(1, longest + 1), budget, key=lambda size: self._count(text[:size])
        )
        if size < len(text) and not text[size].isspace() and " " in text[:size]:
            size = text.rindex(" ", 0, size)
        # A tokenizer may need more for less: "un" + "k" against "unk".
        while size and self._count(text[:size].rstrip()) > budget:
            size -= 1
        return text[:size].rstrip()
