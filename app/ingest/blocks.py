"""Divides Markdown or plain text into blocks of lines that belong together, under headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

# A longer line that begins with `#` is a paragraph, because a chunk's header could not hold it.
_MAX_HEADING_CHARS = 300

_BLANK_LINES = re.compile(r"\s*\n")
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])\s")


class Kind(Enum):
    BLANK = auto()
    PROSE = auto()
    ITEM = auto()
    ROW = auto()
    FENCE = auto()
    CODE = auto()
    HEADING = auto()
    UNDERLINE = auto()


@dataclass(slots=True)
class Block:
    """Lines that belong together; `level` is 1 to 6 for a heading and 0 for all others."""

    start: int
    end: int
    kind: Kind
    level: int = 0
    lines: int = 1
    is_leaf: bool = False

    @property
    def has_rows(self) -> bool:
        """A table or code: its lines matter more than its sentences."""
        return self.kind in (Kind.ROW, Kind.FENCE)

    def takes(self, line: "Block") -> bool:
        if line.kind is Kind.CODE:
            return True
        if line.kind is Kind.ROW:
            return self.kind is Kind.ROW
        if line.kind in (Kind.PROSE, Kind.UNDERLINE):
            return self.kind in (Kind.PROSE, Kind.ITEM)
        return False

    def is_title_of(self, line: "Block") -> bool:
        return (
            line.kind is Kind.UNDERLINE
            and self.kind is Kind.PROSE
            and self.lines == 1
            and self.end - self.start <= _MAX_HEADING_CHARS
        )


def first_heading(text: str) -> str | None:
    """The first level-1 heading outside code, or None."""
    return next((_heading(text, block) for block in _blocks(text) if block.level == 1), None)


def sections(text: str) -> Iterator[tuple[list[str], list[Block]]]:
    """Yield the blocks between two headings, together with the path of headings above them."""
    path: list[tuple[int, str]] = []
    blocks: list[Block] = []
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


def _outline(text: str) -> Iterator[Block]:
    """Yield the blocks, with `is_leaf` set for headings that have nothing below them."""
    previous: Block | None = None
    for block in _blocks(text):
        if previous is not None:
            previous.is_leaf = 0 < block.level <= previous.level
            yield previous
        previous = block
    if previous is not None:
        previous.is_leaf = previous.level > 0
        yield previous


def _heading(text: str, block: Block) -> str:
    line = text[block.start : block.end].strip()
    match = _ATX.match(line)
    line = line.split("\n", 1)[0] if match is None else re.sub(r"\s#+$", "", match[2])
    return " ".join(line.split())


def _blocks(text: str) -> Iterator[Block]:
    current: Block | None = None
    for line in _lines(text):
        if current is not None and current.is_title_of(line):
            yield Block(current.start, line.end, Kind.HEADING, line.level)
            current = None
        elif current is not None and current.takes(line):
            current.end = line.end
            current.lines += 1
        else:
            if current is not None:
                yield current
            current = None if line.kind is Kind.BLANK else line
            if line.kind is not Kind.HEADING:
                line.level = 0
    if current is not None:
        yield current


def _lines(text: str) -> Iterator[Block]:
    """Yield each line as a separate block, with its kind in Markdown."""
    fence = ""
    start = 0
    while start < len(text):
        blank = _BLANK_LINES.match(text, start)
        if blank is not None:
            yield Block(start, blank.end() - 1, Kind.CODE if fence else Kind.BLANK)
            start = blank.end()
            continue
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        body = line.strip()
        if fence:
            yield Block(start, end, Kind.CODE)
            if body.startswith(fence) and not body.strip(fence[0]):
                fence = ""
        else:
            kind, level = _kind(line, body)
            yield Block(start, end, kind, level)
            match = _FENCE.match(body) if kind is Kind.FENCE else None
            fence = (match[1] or match[2]) if match else ""
        start = end + 1


def _kind(line: str, body: str) -> tuple[Kind, int]:
    if not body:
        return Kind.BLANK, 0
    first = body[0]
    if first in "`~" and _FENCE.match(body):
        return Kind.FENCE, 0
    if first == "#":
        return _hash_kind(line)
    if first == "|":
        return Kind.ROW, 0
    if first in "=-" and len(body) >= 3 and not body.strip(first):
        return Kind.UNDERLINE, 1 if first == "=" else 2
    return (Kind.ITEM if _ITEM.match(body) else Kind.PROSE), 0


def _hash_kind(line: str) -> tuple[Kind, int]:
    match = _ATX.match(line)
    if match is None or len(line) > _MAX_HEADING_CHARS or not match[2].strip("# \t"):
        return Kind.PROSE, 0
    return Kind.HEADING, len(match[1])
