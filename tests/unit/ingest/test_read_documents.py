"""Files and folders that are read, and every way in which one cannot be."""

import gzip
import io
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.ingest.document import Document, Failure
from app.ingest.read import read

LIMIT = 100_000


def documents(*paths: Path, limit: int = LIMIT) -> list[Document]:
    results = list(read(paths, limit))
    assert all(isinstance(result, Document) for result in results), results
    return [result for result in results if isinstance(result, Document)]


def only(path: Path, limit: int = LIMIT) -> Document:
    (document,) = documents(path, limit=limit)
    return document


def failure(path: Path, limit: int = LIMIT) -> str:
    (result,) = read([path], limit)
    assert isinstance(result, Failure), result
    assert result.error.isprintable()
    assert result.error.startswith(result.source + ": ")
    return result.error.removeprefix(f"{path}: ")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


# --- Markdown and text


def test_markdown_takes_its_title_from_the_first_heading(tmp_path: Path) -> None:
    path = write(
        tmp_path / "leave.md", "intro\n\n```\n# no\n```\n\n## Sub\n\n#  Leave  #\n\ntext\n"
    )
    document = only(path)
    assert document.title == "Leave"
    assert document.source == str(path)
    assert document.id.startswith("f_")
    assert len(document.id) == 22
    assert document.allow is None
    assert document.tenant is None
    assert document.metadata == {}
    assert only(write(tmp_path / "no heading.markdown", "text")).title == "no heading"


@pytest.mark.parametrize(
    ("content", "title", "start"),
    [
        ("---\ntitle: Parental leave\ntags:\n- a\n---\n# H\n", "Parental leave", "\n# H"),
        ('---\n# c\ntitle: "a: \\"b\\"" # c\n...\nx', 'a: "b"', "\nx"),
        ("---\ntitle: 'it''s'\n---\nx", "it's", "\nx"),
        ("---\ntitle: Leave # comment\n---\nx", "Leave", "\nx"),
        ("---\ntitle: >-\n  folded\n---\n# H\nx", "H", "\n# H"),
        ("---\nother: 1\n---\nx", "f", "\nx"),
        ("---\nA rule, then text: not YAML.\n\n---\nx", "f", "---\nA rule"),
        ("---\ntitle: never closed\n\nx", "f", "---\n"),
        ("---\n\n---\nx", "f", "---\n"),
        ("---", "f", "---"),
    ],
)
def test_front_matter_is_dropped_and_a_rule_is_not(
    tmp_path: Path, content: str, title: str, start: str
) -> None:
    document = only(write(tmp_path / "f.md", content))
    assert document.title == title
    assert document.text.startswith(start)


def test_text_is_normalised(tmp_path: Path) -> None:
    document = only(write(tmp_path / "a.txt", b"\xef\xbb\xbf# one \r\ntwo\t\re\xcc\x81\n"))
    assert document.text == "# one\ntwo\né\n"
    assert document.title == "a"


def test_a_file_has_one_id_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "docs/a.md", "text")
    (tmp_path / "link.md").symlink_to("docs/a.md")
    monkeypatch.chdir(tmp_path)
    direct = only(Path("docs/a.md"))
    assert direct.source == str(tmp_path / "docs/a.md")
    assert only(Path("docs/../docs/a.md")) == direct
    assert only(Path("link.md")).id == direct.id
    assert documents(Path("docs"), Path("docs/a.md"), Path("link.md")) == [direct]


# --- files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.md", b"", "is empty"),
        ("a.txt", b" \n\t\n", "is empty"),
        ("a.md", b"---\ntitle: x\n---\n \n", "is empty"),
        ("a.html", b"", "is empty"),
        ("a.html", b"<script>x</script><!-- c -->", "is empty"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.md", b"ab\xffc", "byte 2 (0xff) is not UTF-8; save it as UTF-8"),
        ("a.txt", b"\xef\xbb\xbf\xe9", "byte 3 (0xe9) is not UTF-8"),
        ("a.htm", "é".encode("latin-1"), "byte 0 (0xe9) is not UTF-8"),
        ("a.txt", "x".encode("utf-16"), "is UTF-16 or UTF-32 text; save it as UTF-8"),
        ("a.jsonl", "{}".encode("utf-16"), "is UTF-16 or UTF-32 text"),
        ("a.txt", b"a\0b", "the text has a NUL at character 1"),
        ("a.html", b"<p>\na\0b", "the page has a NUL at character 5 (line 2)"),
        ("a.txt", b"x" * 100_001, "100,001 bytes of text are more than the limit of 100,000"),
        ("a.exe", b"x", "files with this ending are not read; those that are: .md .markdown .txt"),
        ("noending", b"x", "files with this ending are not read"),
        (".md", b"x", "files with this ending are not read"),
        ("a.pdf", b"not a PDF", "cannot be parsed as PDF ("),
        ("a.pdf", b"", "cannot be parsed as PDF ("),
        ("a.docx", b"not a zip", "is not a DOCX file, or has a password"),
        ("a.docx", b"", "is not a DOCX file, or has a password"),
        ("a.html", b"<div>" * 10_000 + b"x", "the HTML is nested too deeply on line 1"),
    ],
)
def test_a_bad_file_is_named_with_its_problem(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    assert failure(write(tmp_path / name, content)).startswith(problem)


def test_size_is_checked_before_reading_and_after_normalising(tmp_path: Path) -> None:
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(50_000_000_000)
    assert failure(huge).startswith("50,000,000,000 bytes of text are more than the limit")
    assert only(write(tmp_path / "bom.txt", b"\xef\xbb\xbf" + b"x" * 100)).text == "x" * 100
    assert only(write(tmp_path / "exact.txt", b"x" * 100), limit=100).text == "x" * 100
    assert failure(write(tmp_path / "over.txt", b"x" * 101), limit=100).startswith("101 bytes")


def test_missing_paths_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = write(tmp_path / "good.md", "text")
    missing = tmp_path / "missing.md"
    first, second, third = read([missing, Path("a\0b"), good], LIMIT)
    assert isinstance(first, Failure)
    assert first.error == f"{missing}: no such file or folder; check the spelling"
    assert isinstance(second, Failure)
    assert "\\x00" in second.error
    assert isinstance(third, Document)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.md", "text")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("app.ingest.source.open", refuse, raising=False)
    assert failure(path).startswith("cannot be read (Permission denied); check that it exists")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "text")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    document, problem = read([tmp_path], LIMIT)
    assert isinstance(document, Document)
    assert isinstance(problem, Failure)
    assert problem.error.startswith(f"{closed}: cannot be read (Permission denied)")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.md")
    assert failure(tmp_path / "a.md").startswith("is not a regular file")


def test_names_that_are_odd_but_text_are_read_and_others_named(tmp_path: Path) -> None:
    assert only(write(tmp_path / "a\u202fb\nc.md", "text")).title == "a b c"
    raw = os.fsencode(tmp_path) + b"/\xff.md"
    with open(raw, "wb") as file:
        file.write(b"text")
    (result,) = read([Path(os.fsdecode(raw))], LIMIT)
    assert isinstance(result, Failure)
    assert result.error == f"{tmp_path}/\\udcff.md: the name is not UTF-8 text; rename the file"


# --- folders


def test_a_folder_is_walked_in_order_without_hidden_and_unknown_files(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.MD", ".hidden.md", ".git/d.md", "e.png", "sub/f.py"):
        write(tmp_path / name, "text")
    sources = [document.source for document in documents(tmp_path)]
    assert sources == [str(tmp_path / name) for name in ("a.txt", "b.md", "sub/c.MD")]


def test_a_folder_without_readable_files_says_which_endings_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.png", "x")
    write(tmp_path / ".b.md", "x")
    problem = failure(tmp_path)
    assert problem.startswith(
        "no file in this folder has an ending that can be read: .md .markdown"
    )
    assert problem.endswith(".jsonl.gz")


def test_links_that_leave_the_folder_or_go_round_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret.md", "secret")
    root = tmp_path / "root"
    inside = write(root / "sub/a.md", "text")
    (root / "leaves.md").symlink_to("../secret.md")
    (root / "leaves").symlink_to("..")
    (root / "sub/loop").symlink_to("..")
    (root / "self.md").symlink_to("self.md")
    results = list(read([root], LIMIT))
    assert [result.source for result in results] == [str(root / "self.md"), str(inside)]
    assert isinstance(results[0], Failure)
    write(root / "..data/b.md", "kept where a mounted ConfigMap keeps it")
    (root / "b.md").symlink_to("..data/b.md")
    assert str(root / "b.md") in [result.source for result in read([root], LIMIT)]


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to("a.md")
    assert failure(tmp_path / "a.md").startswith("cannot be read (Too many levels of symbolic")


# --- HTML

PAGE = """<!doctype html><html><head><title>Site - Leave</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><h1>Leave <em>rules</em></h1>Loose text<br>second line
<!-- comment --> and its end<p>Twenty <b>weeks</b> &amp; more
<p>No end tag<ul><li>one<ul><li>deep</li></ul><li>two</ul><ol><li>first<li>second</ol>
<table><caption>Limits</caption><tr><th>item<th>limit<tr><td>a|b<td><p>2</p><p>3</p></table>
<pre>x = 1<br># no heading</pre><script>evil()</script><my-card>card</my-card>end
<table><tr><td><h2>Layout</h2>left</td><td>right</td></tr></table></body></html>"""


def test_html_becomes_markdown(tmp_path: Path) -> None:
    document = only(write(tmp_path / "a.html", PAGE))
    assert document.title == "Leave rules"
    assert document.text == (
        "# Leave rules\n\nLoose text\nsecond line and its end\n\nTwenty weeks & more\n\n"
        "No end tag\n\n- one\n  - deep\n- two\n\n1. first\n2. second\n\nLimits\n\n"
        "| item | limit |\n| --- | --- |\n| a\\|b | 2 3 |\n\n"
        "```\nx = 1\n# no heading\n```\n\ncard\n\nend\n\n## Layout\n\nleft\n\nright"
    )


def test_html_without_a_heading_takes_its_title_element(tmp_path: Path) -> None:
    path = write(tmp_path / "a.htm", "<title> Page\n one</title><meta charset=latin-1><p>é")
    assert (only(path).title, only(path).text) == ("Page one", "é")
    assert only(write(tmp_path / "plain.html", "only text")).title == "plain"


# --- DOCX


def docx_bytes(change: bytes = b"") -> bytes:
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.add_heading("Leave", 0)
    made.add_paragraph("Intro.")
    made.add_heading("Parental", 1)
    made.add_paragraph("Twenty weeks.")
    made.add_paragraph("one", style="List Bullet")
    made.add_paragraph("two", style="List Bullet")
    table = made.add_table(2, 2)
    for row, cells in enumerate((("item", "limit"), ("laptop", "2,000"))):
        for column, cell in enumerate(cells):
            table.cell(row, column).text = cell
    made.save(buffer := io.BytesIO())
    if not change:
        return buffer.getvalue()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out := io.BytesIO(), "w") as new:
        for name in old.namelist():
            new.writestr(name, change if name == "word/document.xml" else old.read(name))
    return out.getvalue()


def test_docx_becomes_markdown(tmp_path: Path) -> None:
    document = only(write(tmp_path / "a.docx", docx_bytes()))
    assert document.title == "Leave"
    assert document.text == (
        "# Leave\n\nIntro.\n\n# Parental\n\nTwenty weeks.\n\n- one\n- two\n\n"
        "| item | limit |\n| --- | --- |\n| laptop | 2,000 |"
    )


def test_a_damaged_or_swollen_docx_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.docx", docx_bytes(b"<broken"))
    assert failure(path).startswith("cannot be parsed as DOCX (")
    write(path, docx_bytes(b" " * 2_000_000))
    assert "bytes of text are more than the limit of 100,000" in failure(path)
    write(path, docx_bytes()[:-100])
    assert failure(path).startswith("is not a DOCX file")


def test_the_paragraph_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = f"<w:document {word}><w:body>" + "<w:p/>" * 2 + "<w:tbl><w:p>&nothing;"
    problem = failure(write(tmp_path / "a.docx", docx_bytes(body.encode())))
    assert problem.startswith("cannot be parsed as DOCX (paragraph 3, table 1: ExpatError: undef")


@pytest.mark.parametrize("name", ["word/document.xml", "_rels/.rels", "word/media/image1.png"])
def test_a_docx_that_grows_is_refused_whatever_the_part_is_called(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, b" " * 2_000_000)
    path = write(tmp_path / "a.docx", out.getvalue())
    assert "bytes of text are more than the limit of 100,000" in failure(path)
    monkeypatch.setattr("app.ingest.docx._MOST_ELEMENTS", 1_000)
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, b"<a>" + b"<b/>" * 1_000 + b"</a>")
    write(path, out.getvalue())
    assert failure(path).startswith("has 1,001 XML elements, more than the limit of 1,000")


# --- PDF


def pdf_bytes(pages: Sequence[bytes], extra: bytes = b"") -> bytes:
    """A PDF with one content stream per page; `extra` goes into the streams' dictionaries."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in enumerate(pages):
        filtered = b"" if page else b" /Filter /NoSuchFilter"
        stream = b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % page if page != b" " else b""
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792]"
            b" /Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % (5 + 2 * number)
        )
        objects.append(
            b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(stream), filtered, stream)
        )
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        start,
    )
    return bytes(out)


def test_pdf_pages_become_one_document(tmp_path: Path) -> None:
    document = only(write(tmp_path / "rules.pdf", pdf_bytes([b"First page.", b"Second page."])))
    assert document.title == "rules"
    assert document.text.split("\n\n") == ["First page.", "Second page."]


def test_a_bad_page_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", pdf_bytes([b"First page.", b"", b"Third page."]))
    problem, document = read([path], LIMIT)
    assert isinstance(problem, Failure)
    assert problem.error.startswith(f"{path}: page 2 cannot be parsed (")
    assert isinstance(document, Document)
    assert document.text == "First page.\n\nThird page."


def test_a_page_that_is_not_there_is_named_and_the_next_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pypdf import PdfReader

    class Pages:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, number: int) -> object:
            raise RecursionError("too deep") if number else KeyError("/Kids")

    monkeypatch.setattr(PdfReader, "pages", Pages())
    path = write(tmp_path / "a.pdf", pdf_bytes([b"First page."]))
    good = write(tmp_path / "b.md", "text")
    first, second, last = read([path, good], LIMIT)
    assert isinstance(first, Failure)
    assert first.error == f"{path}: page 1 cannot be parsed (KeyError: '/Kids')"
    assert isinstance(second, Failure)
    assert second.error == f"{path}: page 2 cannot be parsed (RecursionError: too deep)"
    assert isinstance(last, Document)


def test_a_pdf_without_text_says_what_it_needs(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.pdf", pdf_bytes([b" "]))
    assert failure(path) == "is empty; a scanned PDF needs text recognition (OCR) first"
    write(path, pdf_bytes([b"x" * 60] * 3))
    assert failure(path, limit=100).startswith("120 bytes of text are more than the limit of 100")


def test_a_pdf_with_a_password_says_so(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_bytes([b"secret"]))))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(path := tmp_path / "a.pdf")
    assert failure(path) == "has a password; save it without one"


# --- any bytes at all

ENDINGS = [".md", ".txt", ".html", ".pdf", ".docx", ".jsonl", ".jsonl.gz"]


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=25)
@given(data=st.data())
def test_no_bytes_make_it_raise(tmp_path: Path, ending: str, data: st.DataObject) -> None:
    logging.disable(logging.CRITICAL)
    good = {
        ".pdf": pdf_bytes([b"First page.", b"Second page."]),
        ".docx": docx_bytes(),
        ".jsonl.gz": gzip.compress(b'{"id": 1, "text": "x"}\n' * 9),
        ".html": PAGE.encode(),
    }.get(ending, b'{"id": 1, "text": "x"}\n')
    at = data.draw(st.integers(0, len(good)))
    junk = data.draw(st.binary(max_size=40))
    cut = data.draw(st.integers(0, 40))
    path = write(tmp_path / f"a{ending}", good[:at] + junk + good[at + cut :])
    for result in read([path], LIMIT):
        assert isinstance(result, Document) or result.error.startswith(str(path))
    logging.disable(logging.NOTSET)
