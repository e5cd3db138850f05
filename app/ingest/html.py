"""Converts HTML pages to Markdown."""

import re
from typing import Any

from app.errors import IngestError
from app.ingest.blocks import first_heading
from app.ingest.document import Results
from app.ingest.source import Source
from app.ingest.text import check_characters, file_document, load

# fmt: off
_DROPPED = frozenset((
    "script", "style", "nav", "head", "noscript", "template", "svg", "iframe", "object", "canvas",
    "select", "textarea", "button",
))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "input", "ins", "kbd", "label", "mark", "meter", "output", "progress", "q",
    "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time",
    "tt", "u", "var", "wbr",
))
# fmt: on
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_LAYOUT = ("table", "ul", "ol", "pre", *sorted(_HEADINGS))


def read_html(source: Source, max_bytes: int) -> Results:
    """Yield a page as one document in Markdown."""
    title, text = html_text(load(source, max_bytes))
    yield file_document(source, first_heading(text) or title, text, max_bytes)


def html_text(html: str) -> tuple[str, str]:
    """Return the `<title>`, and the body as Markdown."""
    from lxml import etree  # type: ignore[import-untyped]

    check_characters(html, "the page")
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True)
    try:
        root = etree.fromstring(html.encode("utf-8"), parser)
    except etree.XMLSyntaxError as error:
        if not html or html.isspace() or "empty" in str(error):
            return "", ""
        raise
    # Beyond its depth limit, the parser drops the rest and reports it only here.
    for entry in parser.error_log:
        if "depth" in entry.message:
            raise IngestError(
                f"the HTML is nested too deeply on line {entry.line};"
                " simplify it or save it as text"
            )
    if root is None:
        return "", ""
    title = root.find(".//head/title")
    return (title.text or "") if title is not None else "", _MarkdownWriter().convert(root)


class _MarkdownWriter:
    """Writes an HTML tree as Markdown (headings, lists, code, tables), without recursion."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._inline: list[str] = []
        self._prefix = ""
        self._was_tight = False
        self._lists: list[int | None] = []
        self._tables: list[bool] = []
        self._in_cell = False
        self._row: list[str] = []
        self._rows = 0

    def convert(self, root: Any) -> str:
        """Return the tree's text as Markdown."""
        from lxml import etree

        walk = etree.iterwalk(root, events=("start", "end", "pi"))
        for event, node in walk:
            if event == "start":
                self._add(node.text if self._enter(node) else walk.skip_subtree())
                continue
            if event == "end" and node.tag not in _DROPPED:
                self._leave(node.tag)
            self._add(node.tail if node is not root else None)
        self._flush()
        return "".join(self._out)

    def _enter(self, node: Any) -> bool:
        """Enter an element; return False if nothing below it should be walked."""
        tag = node.tag
        if tag in _DROPPED:
            return False
        if tag == "br":
            self._inline.append("\n")
        elif tag == "pre":
            self._flush()
            self._code(node)
            return False
        elif tag not in _INLINE:
            self._flush()
            self._enter_block(node, tag)
        return True

    def _enter_block(self, node: Any, tag: str) -> None:
        if tag in _HEADINGS:
            self._prefix = "#" * int(tag[1]) + " "
        elif tag in ("ul", "ol", "menu"):
            # Two lists in a row are two blocks.
            self._was_tight = self._was_tight and bool(self._lists)
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._prefix = self._marker()
        elif tag == "table":
            self._tables.append(all(inner is node for inner in node.iter(*_LAYOUT)))
            self._rows = 0
        elif tag in ("td", "th"):
            self._in_cell = self._in_data_table()

    def _leave(self, tag: str) -> None:
        if tag in _INLINE or tag in ("br", "pre"):
            return
        if tag in ("td", "th") and self._in_cell:
            self._in_cell = False
            self._row.append(" ".join("".join(self._inline).split()).replace("|", "\\|"))
            self._inline.clear()
            return
        self._flush()
        if tag in _HEADINGS or tag == "li":
            self._prefix = ""
        elif tag in ("ul", "ol", "menu") and self._lists:
            self._lists.pop()
        elif tag in ("tr", "table"):
            self._end_row()
            if tag == "table":
                self._tables.pop()

    def _in_data_table(self) -> bool:
        """False in a table with headings, lists or tables in it: such a table is for layout only,
        and its cells are blocks."""
        return bool(self._tables) and self._tables[-1]

    def _marker(self) -> str:
        indent = "  " * max(0, len(self._lists) - 1)
        number = self._lists[-1] if self._lists else None
        if number is None:
            return f"{indent}- "
        self._lists[-1] = number + 1
        return f"{indent}{number + 1}. "

    def _add(self, text: str | None) -> None:
        if text:
            self._inline.append(re.sub(r"\s+", " ", text))

    def _flush(self) -> None:
        """End the current paragraph."""
        if self._in_cell:
            self._inline.append(" ")
            return
        lines = [" ".join(line.split()) for line in "".join(self._inline).split("\n")]
        self._inline.clear()
        separator = " " if self._prefix.startswith("#") else "\n"
        body = separator.join(line for line in lines if line)
        if body:
            self._emit(self._prefix + body, tight=self._prefix.endswith(("- ", ". ")))
            self._prefix = ""

    def _code(self, node: Any) -> None:
        for line_break in node.iter("br"):
            line_break.tail = "\n" + (line_break.tail or "")
        code = "".join(node.itertext()).strip("\n")
        if code and not code.isspace():
            longest = max(map(len, re.findall("`+", code)), default=0)
            fence = "`" * max(3, longest + 1)
            self._emit(f"{fence}\n{code}\n{fence}", tight=False)

    def _end_row(self) -> None:
        if any(self._row):
            line = f"| {' | '.join(self._row)} |"
            if self._rows == 0:
                line += "\n|" + " --- |" * len(self._row)
            self._emit(line, tight=self._rows > 0)
            self._rows += 1
        self._row.clear()

    def _emit(self, block: str, tight: bool) -> None:
        if self._out:
            self._out.append("\n" if tight and self._was_tight else "\n\n")
        self._out.append(block)
        self._was_tight = tight or block.startswith("|")
