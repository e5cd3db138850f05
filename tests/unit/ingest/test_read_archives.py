"""Archives are read as folders are, member by member, and every way in which one cannot be."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.ingest import archive as archives
from app.ingest import source as sources
from app.ingest.document import Document, Failure
from app.ingest.read import read
from tests.unit.ingest.test_read_documents import docx_bytes, pdf_bytes

LIMIT = 100_000
Members = Sequence[tuple[str, bytes]]


def zipped(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return out.getvalue()


def tarred(members: Members) -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


MAKERS: dict[str, Callable[[Members], bytes]] = {
    ".zip": zipped,
    ".tar": tarred,
    ".tar.gz": lambda members: gzip.compress(tarred(members)),
    ".tgz": lambda members: gzip.compress(tarred(members)),
    ".tar.bz2": lambda members: bz2.compress(tarred(members)),
    ".tar.xz": lambda members: lzma.compress(tarred(members)),
}
every_archive = pytest.mark.parametrize("ending", MAKERS)
tar_or_zip = pytest.mark.parametrize("ending", [".zip", ".tar"])


def make(folder: Path, ending: str, members: Members, name: str = "a") -> Path:
    path = folder / f"{name}{ending}"
    path.write_bytes(MAKERS[ending](members))
    return path


def found(path: Path, limit: int = LIMIT) -> dict[str, str]:
    """Source -> the text of a document, or the error of a failure without its source."""
    results = list(read([path], limit))
    for result in results:
        if isinstance(result, Failure):
            assert result.error.startswith(f"{result.source}: ")
            assert result.error.isprintable()
    return {
        r.source: r.text if isinstance(r, Document) else r.error.removeprefix(f"{r.source}: ")
        for r in results
    }


# --- what is read


@every_archive
def test_members_are_read_as_the_files_of_a_folder_are(tmp_path: Path, ending: str) -> None:
    path = make(
        tmp_path,
        ending,
        [
            ("./handbook/leave.md", b"# Leave\n\nTwenty weeks."),
            ("handbook/rules.pdf", pdf_bytes([b"First page.", b"Second page."])),
            ("handbook/travel.DOCX", docx_bytes()),
            ("rows.jsonl", b'{"id": "tea", "text": "Tea is at five."}\n'),
            ("more.jsonl.gz", gzip.compress(b'{"id": "pool", "text": "The pool is open."}\n')),
            ("notes.txt.gz", gzip.compress(b"packed")),
            ("picture.png", b"\x89PNG"),
            (".git/config.md", b"hidden"),
            ("__MACOSX/._leave.md", b"hidden"),
        ],
    )
    documents = [d for d in read([path], LIMIT) if isinstance(d, Document)]
    told = [(d.source.removeprefix(f"{path}!"), d.title) for d in documents]
    assert told == [
        ("handbook/leave.md", "Leave"),
        ("handbook/rules.pdf", "rules"),
        ("handbook/travel.DOCX", "Leave"),
        ("rows.jsonl#tea", "tea"),
        ("more.jsonl.gz#pool", "pool"),
        ("notes.txt.gz", "notes"),
    ]
    assert documents[1].text == "First page.\n\nSecond page."
    assert len({d.id for d in documents}) == 6
    assert [d.id for d in read([path], LIMIT) if isinstance(d, Document)] == [
        d.id for d in documents
    ]


def test_a_folder_has_its_archives_read_and_ids_of_plain_files_are_as_they_were(
    tmp_path: Path,
) -> None:
    plain = tmp_path / "a.zip!b.md"
    plain.write_text("a file of this name")
    make(tmp_path, ".zip", [("b.md", b"a member of this name")])
    second, first = read([tmp_path], LIMIT)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.source == second.source == str(plain)
    digest = hashlib.sha1(str(plain).encode(), usedforsecurity=False).hexdigest()
    assert first.id == f"f_{digest[:20]}"
    assert first.id != second.id


def test_gzipped_files_are_read_as_what_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "Leave.md.gz"
    path.write_bytes(gzip.compress(b"twenty weeks"))
    (document,) = read([path], LIMIT)
    assert isinstance(document, Document)
    assert (document.title, document.source) == ("Leave", str(path))
    (tmp_path / "b.pdf.gz").write_bytes(gzip.compress(pdf_bytes([b"First page."])))
    assert found(tmp_path / "b.pdf.gz") == {str(tmp_path / "b.pdf.gz"): "First page."}
    path.write_bytes(gzip.compress(b"x" * 500_000))
    assert "bytes of text are more than the limit of 100,000" in found(path)[str(path)]
    path.write_bytes(gzip.compress(b"x" * 50)[:-9])
    assert found(path)[str(path)].startswith("the gzip data is damaged or cut off (")


@every_archive
def test_nothing_is_written_under_a_name_of_the_archive(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    monkeypatch.setattr(sources, "_KEPT_IN_MEMORY", 10)
    path = make(tmp_path, ending, [("a.pdf", pdf_bytes([b"Page."])), ("b.docx", docx_bytes())])
    monkeypatch.chdir(empty)
    for result in read([path], LIMIT):
        assert isinstance(result, Document)
        assert list(empty.iterdir()) == []


def test_a_large_member_is_never_held_in_memory(tmp_path: Path) -> None:
    rows = b'{"id": "%d", "text": "%s"}\n'
    content = b"".join(rows % (n, os.urandom(500).hex().encode()) for n in range(20_000))
    path = make(tmp_path, ".tar.gz", [("rows.jsonl", content)])
    del content
    tracemalloc.start()
    try:
        assert sum(isinstance(result, Document) for result in read([path], LIMIT)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000


# --- members that are refused


@tar_or_zip
@pytest.mark.parametrize(
    "name", ["/etc/a.md", "../a.md", "b/../../a.md", "..\\a.md", "\\\\host\\a.md", "C:\\a.md"]
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, ending: str, name: str) -> None:
    path = make(tmp_path, ending, [(name, b"text"), ("good.md", b"good")])
    results = found(path)
    assert results.pop(f"{path}!good.md") == "good"
    (problem,) = results.values()
    assert problem.startswith("the name leads out of the archive")


@tar_or_zip
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("in.zip", b"x", "is an archive inside an archive; unpack the outer one"),
        ("in.tar.gz", b"x", "is an archive inside an archive"),
        ("empty.md", b"", "is empty"),
        ("latin.txt", b"caf\xe9", "byte 3 (0xe9) is not UTF-8"),
        ("big.md", b"x" * 100_001, "100,001 bytes of text are more than the limit"),
        (
            "big.pdf",
            b"x" * 1_000_001,
            "unpacks to more than 1,000,000 bytes, too many for a packed",
        ),
        ("bad.pdf", b"x", "cannot be parsed as PDF ("),
        ("bad.docx", b"x", "is not a DOCX file"),
        ("bad.md.gz", b"x", "the gzip data is damaged or cut off ("),
        ("n" * 1001 + ".md", b"x", "the name has more than 1,000 characters"),
    ],
)
def test_a_bad_member_is_named_and_the_others_are_read(
    tmp_path: Path, ending: str, name: str, content: bytes, problem: str
) -> None:
    path = make(tmp_path, ending, [("a.md", b"first"), (name, content), ("z.md", b"last")])
    results = found(path)
    assert results.pop(f"{path}!a.md") == "first"
    assert results.pop(f"{path}!z.md") == "last"
    ((source, told),) = results.items()
    assert f"{path}!{name}".startswith(source)
    assert told.startswith(problem)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@tar_or_zip
def test_a_member_that_is_there_twice_is_read_once(tmp_path: Path, ending: str) -> None:
    path = make(tmp_path, ending, [("a.md", b"first"), ("./a.md", b"second")])
    first, second = read([path], LIMIT)
    assert isinstance(first, Document)
    assert first.text == "first"
    assert isinstance(second, Failure)
    assert "is in the archive twice" in second.error


def test_links_and_devices_are_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as made:
        for name, kind in (
            ("soft.md", tarfile.SYMTYPE),
            ("hard.md", tarfile.LNKTYPE),
            ("pipe.md", tarfile.FIFOTYPE),
            ("null", tarfile.CHRTYPE),
            ("folder.md", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            made.addfile(info)
        info = tarfile.TarInfo("a.md")
        info.size = 4
        made.addfile(info, io.BytesIO(b"text"))
    results = found(path)
    assert results.pop(f"{path}!a.md") == "text"
    assert [s.removeprefix(f"{path}!") for s in results] == [
        "soft.md",
        "hard.md",
        "pipe.md",
        "null",
    ]
    assert all("was skipped" in problem for problem in results.values())

    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as zip_made:
        link = zipfile.ZipInfo("soft.md")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zip_made.writestr(link, "/etc/passwd")
    assert list(found(path).values()) == [
        "is a link and was skipped; put the file itself into the archive"
    ]


def test_an_encrypted_member_says_so(tmp_path: Path) -> None:
    data = bytearray(zipped([("a.md", b"text"), ("b.png", b"x"), ("c.md", b"text")]))
    first = data.index(b"PK\x01\x02")
    data[first + 8] |= 1
    data[data.index(b"PK\x01\x02", first + 4) + 8] |= 1
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    assert list(found(path).values()) == [
        "has a password; make the archive without one",
        "text",
    ]


@every_archive
def test_an_unreadable_archive_is_named_and_the_rest_is_read(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, ending, [("a.md", b"text")])
    good = tmp_path / "good.md"
    good.write_text("text")

    def open_or_refuse(name: str, mode: str) -> object:
        if name == str(path):
            raise PermissionError(13, "Permission denied")
        return open(name, mode)

    monkeypatch.setattr("app.ingest.source.open", open_or_refuse, raising=False)
    problem, document = read([path, good], LIMIT)
    assert isinstance(problem, Failure)
    assert problem.error.startswith(f"{path}: cannot be read (Permission denied)")
    assert isinstance(document, Document)


@tar_or_zip
def test_an_archive_with_nothing_to_read_says_which_endings_are(
    tmp_path: Path, ending: str
) -> None:
    path = make(tmp_path, ending, [("a.png", b"x"), (".b.md", b"x")])
    assert found(path)[str(path)].startswith(
        "no member of this archive has an ending that can be read"
    )


# --- limits


@every_archive
def test_what_unpacks_to_too_much_is_stopped(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_HARMLESS_BYTES", 200_000)
    monkeypatch.setattr(sources, "_MOST_RATIO", 1)
    members = [(f"{n}.jsonl", b'{"id": "%d", "text": "x"}' % n + b" " * 60_000) for n in range(9)]
    path = make(tmp_path, ending, members)
    if ending == ".tar":
        monkeypatch.setattr(sources, "_MOST_BYTES", 200_000)
    results = list(read([path], LIMIT))
    assert 1 < sum(isinstance(result, Document) for result in results) < 5
    problems = [result.error for result in results if isinstance(result, Failure)]
    assert 0 < len(problems) < 3
    assert all("unpacks to more than 200,000 bytes, the limit for its size" in p for p in problems)


@tar_or_zip
def test_the_number_of_members_is_limited(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 3)
    path = make(tmp_path, ending, [(f"{n}.md", b"text") for n in range(5)])
    *documents, last = read([path], LIMIT)
    assert len(documents) == 3
    assert isinstance(last, Failure)
    assert last.error.startswith(f"{path}: has more than 3 members")


def test_a_header_of_a_tar_is_not_read_into_memory_whatever_its_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8_000_000_000
    path = tmp_path / "a.tar"
    path.write_bytes(tarred([("a.md", b"text")])[:1024] + info.tobuf() + bytes(10_000))
    *documents, last = read([path], LIMIT)
    assert len(documents) == 1
    assert isinstance(last, Failure)
    assert "after member a.md (a header of 8,000,000,000 bytes)" in last.error


# --- damage


@pytest.mark.parametrize("ending", [e for e in MAKERS if e != ".zip"])
def test_what_stands_before_the_damage_is_kept(tmp_path: Path, ending: str) -> None:
    members = [(f"{n}.md", os.urandom(20_000).hex().encode()) for n in range(20)]
    path = make(tmp_path, ending, members)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    results = list(read([path], LIMIT))
    documents = [r for r in results if isinstance(r, Document)]
    failures = [r for r in results if isinstance(r, Failure)]
    assert [d.text.encode() for d in documents] == [c for _, c in members[: len(documents)]]
    if ending != ".tar.bz2":  # one block of it holds all
        assert 0 < len(documents) < 11
        assert failures[0].source == f"{path}!{len(documents)}.md"
    assert failures[-1].source == str(path)
    assert all("damaged or cut off" in f.error for f in failures)


def test_a_tar_that_ends_between_members_or_has_a_broken_header_is_not_taken_for_whole(
    tmp_path: Path,
) -> None:
    data = tarred([("a.md", b"text"), ("b.md", b"text"), ("c.md", b"text")])
    path = tmp_path / "a.tar"
    for broken in (data[:2048], data[:1024] + b"\xff" * 512 + data[1536:]):
        path.write_bytes(broken)
        *documents, last = read([path], LIMIT)
        assert isinstance(last, Failure)
        assert last.error.startswith(f"{path}: the tar data is damaged or cut off after member ")
        assert all(isinstance(document, Document) for document in documents)
        assert documents


def test_a_damaged_member_of_a_zip_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    data = zipped([("a.md", b"one " * 9), ("b.md", b"two"), ("c.md", b"3")], zipfile.ZIP_STORED)
    path = tmp_path / "a.zip"
    path.write_bytes(data.replace(b"two", b"TWO", 1))
    results = found(path)
    assert list(results) == [f"{path}!{name}.md" for name in "abc"]
    assert "zip data is damaged or cut off (Bad CRC-32" in results[f"{path}!b.md"]
    path.write_bytes(data[:-30])
    assert found(path)[str(path)].startswith("is not a zip archive, or is damaged or cut off (")


# --- any archive at all

NAMES = (
    st.lists(
        st.sampled_from(["a", "b.md", "c.txt", ".d", "..", ".", "", "e.zip", "f.png", "é.md"])
        | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8),
        min_size=1,
        max_size=4,
    )
    .map("/".join)
    .filter(bool)
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@tar_or_zip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(st.tuples(NAMES, st.binary(max_size=30)), max_size=6))
def test_any_names_give_labels_below_the_archive(
    tmp_path: Path, ending: str, members: list[tuple[str, bytes]]
) -> None:
    path = make(tmp_path, ending, members)
    ids = []
    for result in read([path], LIMIT):
        if isinstance(result, Document):
            label = result.source.removeprefix(f"{path}!")
            assert not any(part[:1] in ("", ".") for part in label.split("/"))
            ids.append(result.id)
        else:
            assert result.error.startswith(str(path))
    assert len(set(ids)) == len(ids)


@every_archive
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_makes_it_raise_or_gives_a_text_that_was_not_there(
    tmp_path: Path, ending: str, data: st.DataObject
) -> None:
    members = [("a.md", b"alpha " * 40), ("b.jsonl", b'{"id": 1, "text": "beta"}\n' * 5)]
    members += [("c.html", b"<p>gamma</p>"), ("d.txt", b"delta")]
    good = MAKERS[ending](members)
    at = data.draw(st.integers(0, len(good)))
    junk = data.draw(st.binary(max_size=20))
    path = tmp_path / f"a{ending}"
    path.write_bytes(data.draw(st.sampled_from([good[:at], good[:at] + junk + good[at + 20 :]])))
    results = list(read([path], LIMIT))
    assert results
    for result in results:
        assert isinstance(result, Document) or result.error.startswith(str(path))
    if not any(isinstance(result, Failure) for result in results) and ending != ".tar":
        assert {r.source.rsplit("!")[-1] for r in results} <= {
            "a.md",
            "b.jsonl#1",
            "c.html",
            "d.txt",
        }
