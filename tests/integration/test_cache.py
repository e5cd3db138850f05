"""Cache tiers: who may read is asked of the database each time, however warm they are."""

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import torch
from torch import Tensor

from app.answer import retrieval
from app.answer.cache import Cache, _cache, cache
from app.answer.retrieval import Reader
from app.errors import BlobError, UnavailableError
from app.memory.compose import compose
from app.memory.kv import KV
from app.search.search import Passage
from app.settings import settings
from app.store import blobs
from app.store import disk as disk_module
from app.store.blobs import Held, readable
from app.store.disk import Disk, disk
from app.upkeep.erase import erase
from tests import edges
from tests.conftest import PROFILE, Company, administer
from tests.memories import found, learn, read, reader_of, right
from workers import maintenance

TEXT = "The badge is orange.\n\nThe door is blue.\n\nThe pool opens at seven."


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    _cache.cache_clear()
    yield
    _cache.cache_clear()


@pytest.fixture(params=["postgres", "object"])
def company(
    request: pytest.FixtureRequest,
    new_company: Callable[[str], Company],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Company:
    """With one document that all may read; its memories in Postgres or in an object store."""
    if request.param == "object":
        monkeypatch.setenv("MEMBANK_BLOB_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("MEMBANK_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()
    made = new_company("harbor")
    made.store("d", TEXT, ["everyone"])
    assert learn() == 3
    return made


@pytest.fixture
def alice(company: Company) -> Reader:
    return reader_of(company)


@pytest.fixture
def warm(alice: Reader) -> list[Passage]:
    """What alice has read: it lies in every tier."""
    passages = found(alice)
    assert right(passages, read(alice, passages))
    assert len(files()) == 3
    return passages


def files() -> list[Path]:
    folder = disk()
    assert folder is not None
    return sorted(file for file in folder.folder.rglob("*") if file.is_file())


def hits() -> dict[str, int]:
    return {tier: int(told["hits"]) for tier, told in cache().stats().items()}


def cool() -> None:
    """Forget what is decoded, as a restart does."""
    _cache.cache_clear()


class TestTiers:
    def test_each_brings_the_same_memory(self, alice: Reader, warm: list[Passage]) -> None:
        assert hits() == {"memory": 0, "disk": 0, "store": 3, "decode": 3}
        assert right(warm, read(alice, warm))
        assert hits() == {"memory": 3, "disk": 0, "store": 3, "decode": 3}
        cool()
        assert right(warm, read(alice, warm))
        assert hits() == {"memory": 0, "disk": 3, "store": 0, "decode": 3}

    def test_what_each_counts_adds_up(self, alice: Reader, warm: list[Passage]) -> None:
        files()[0].unlink()
        cool()
        read(alice, warm[:2])
        read(alice, warm)
        told = cache().stats()
        assert told["memory"]["hits"] + told["memory"]["misses"] == 5
        for tier, next_tier in (("memory", "disk"), ("disk", "store")):
            below = told[next_tier]["hits"] + told[next_tier]["misses"]
            assert told[tier]["misses"] == below
        assert told["decode"]["hits"] == told["disk"]["hits"] + told["store"]["hits"] == 3
        assert told["memory"]["entries"] == 3
        sizes = [kv.nbytes for kv in read(alice, warm)]
        assert told["memory"]["bytes"] == sum(sizes)
        assert all(tier["seconds"] > 0 for tier in told.values())

    def test_they_can_be_turned_off(self, alice: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMBANK_CACHE_BYTES", "0")
        monkeypatch.setenv("MEMBANK_CACHE_DISK_BYTES", "0")
        settings.cache_clear()
        for _ in range(2):
            assert right(found(alice), read(alice, found(alice)))
        assert hits() == {"memory": 0, "disk": 0, "store": 6, "decode": 6}
        assert cache().stats()["memory"]["entries"] == 0

    def test_the_decoded_ones_hold_no_more_than_their_budget(
        self, alice: Reader, warm: list[Passage]
    ) -> None:
        one = read(alice, warm)[0]
        assert all(
            part.untyped_storage().nbytes() == part.nbytes for part in (one.keys, one.values)
        )
        small = Cache(2 * one.nbytes, None)
        rows = list(readable(alice.asker, PROFILE, [p.id for p in warm]).values())
        load(small, rows)
        told = small.stats()["memory"]
        assert (told["entries"], told["bytes"], told["evicted"]) == (2, 2 * one.nbytes, 1)

    def test_what_lays_them_out_for_an_answer_writes_to_none_of_them(
        self, alice: Reader, warm: list[Passage]
    ) -> None:
        class Writes:
            def rotate(self, keys: Tensor, _: Tensor) -> Tensor:
                return keys.mul_(2)

        stored = read(alice, warm)
        versions = [(kv.keys._version, kv.values._version) for kv in stored]
        whole = compose([stored], Writes(), stored[0])  # type: ignore[arg-type]
        whole.values.mul_(2)
        alone = compose([stored[:1]], Writes())  # type: ignore[arg-type]
        alone.values.mul_(2)
        assert right(warm, read(alice, warm))
        assert versions == [(kv.keys._version, kv.values._version) for kv in stored]


class TestRights:
    """Each is seen by the next question, though memory and disk hold what it forbids."""

    def test_a_reader_off_the_list_gets_nothing(
        self, company: Company, alice: Reader, warm: list[Passage]
    ) -> None:
        edges.set_access(company.tenant, company.bank.id, "d", ["group:hr"])
        with pytest.raises(BlobError, match="gone: ask again"):
            read(alice, warm)
        assert right(warm, read(reader_of(company, "hana", "hr"), warm))

    def test_a_reader_out_of_the_group_gets_nothing(
        self, company: Company, alice: Reader, warm: list[Passage]
    ) -> None:
        edges.set_access(company.tenant, company.bank.id, "d", ["group:hr"])
        hana = reader_of(company, "hana", "hr")
        assert right(warm, read(hana, warm))
        administer("DELETE FROM group_member")
        with pytest.raises(BlobError, match="gone: ask again"):
            read(hana, warm)

    def test_a_deleted_document_is_gone(self, alice: Reader, warm: list[Passage]) -> None:
        administer("DELETE FROM document")
        with pytest.raises(BlobError, match="gone: ask again"):
            read(alice, warm)

    def test_an_edited_document_is_gone_until_it_is_encoded_and_then_new(
        self, company: Company, alice: Reader, warm: list[Passage]
    ) -> None:
        administer("UPDATE document SET text = replace(text, 'orange', 'green')")
        with pytest.raises(BlobError, match="gone: ask again"):
            read(alice, warm)
        learn()
        fresh = found(alice)
        assert {p.text for p in fresh} > {"The badge is green."}
        assert right(fresh, read(alice, fresh))

    def test_a_blob_that_was_changed_by_hand_is_read_again(
        self, alice: Reader, warm: list[Passage], superuser: psycopg.Connection, tmp_path: Path
    ) -> None:
        superuser.execute(
            "UPDATE memory_blob SET payload = 'no blob at all', location = NULL, size = NULL"
        )
        with pytest.raises(BlobError, match=r"memory \d+ of document 'd'"):
            read(alice, warm)

    def test_another_tenant_gets_nothing(
        self, alice: Reader, warm: list[Passage], new_company: Callable[[str], Company]
    ) -> None:
        with pytest.raises(BlobError, match="gone: ask again"):
            read(reader_of(new_company("northwind")), warm)

    def test_a_right_that_ends_while_it_is_fetched_counts(
        self, company: Company, alice: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passages = found(alice)
        fetch = blobs.fetch

        def later(*arguments: object) -> dict[int, bytes]:
            administer("DELETE FROM document")
            return fetch(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(retrieval, "fetch", later)
        if not settings().blob_store:
            with pytest.raises(BlobError, match="gone: ask again"):
                read(alice, passages)
        else:  # the object lasts until the relay takes it; the right was there when it was asked
            assert right(passages, read(alice, passages))


class TestForgetting:
    def test_forget_takes_the_files_and_says_how_many(
        self, company: Company, warm: list[Passage]
    ) -> None:
        assert edges.forget(company.tenant, "d").cache_entries == 3
        assert files() == []

    def test_the_files_of_other_documents_stay(
        self, company: Company, alice: Reader, warm: list[Passage]
    ) -> None:
        company.store("e", "The sauna is hot.", ["everyone"])
        learn()
        read(alice, found(alice))
        assert edges.forget(company.tenant, "d").cache_entries == 3
        assert len(files()) == 1

    def test_a_sweep_takes_what_sql_deleted_and_nothing_else(
        self, company: Company, alice: Reader, warm: list[Passage]
    ) -> None:
        company.store("e", "The sauna is hot.", ["everyone"])
        learn()
        read(alice, found(alice))
        administer("DELETE FROM document WHERE id = 'd'")
        assert cache().sweep() == 6
        assert len(files()) == cache().stats()["memory"]["entries"] == 1
        rest = found(alice)
        assert right(rest, read(alice, rest))
        assert cache().sweep() == 0

    def test_the_relay_removes_files_and_objects_of_what_sql_deleted(
        self, warm: list[Passage], tmp_path: Path
    ) -> None:
        administer("DELETE FROM document")
        stop = threading.Event()
        maintenance._cache(stop)
        maintenance._objects(stop)
        assert files() == []
        assert [p for p in (tmp_path / "objects").rglob("*") if p.is_file()] == []

    def test_an_erased_tenant_leaves_no_file(self, company: Company, warm: list[Passage]) -> None:
        receipt = erase(company.name)
        assert receipt["cache_entries"] == 3
        assert files() == []
        assert cache().sweep() == 3
        assert cache().stats()["memory"]["bytes"] == 0


class TestDisk:
    @pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
    def test_a_damaged_file_is_dropped_and_loaded_again(
        self, alice: Reader, warm: list[Passage], damage: str
    ) -> None:
        whole, other, *_ = files()
        content = bytearray(whole.read_bytes())
        content[1000] ^= 1
        bad = {
            "flip": bytes(content),
            "cut": whole.read_bytes()[:-1],
            "empty": b"",
            "foreign": other.read_bytes(),
        }
        good = whole.read_bytes()
        whole.write_bytes(bad[damage])
        cool()
        assert right(warm, read(alice, warm))
        told = cache().stats()
        assert told["disk"]["dropped"] >= 1
        assert (told["disk"]["hits"], told["store"]["hits"]) == (2, 1)
        assert whole.read_bytes() == good

    def test_files_are_their_owners_and_named_by_numbers(self, warm: list[Passage]) -> None:
        assert len(files()) == len(warm) > 0
        for file in files():
            assert file.stat().st_mode & 0o777 == 0o600
            assert file.parent.stat().st_mode & 0o777 == 0o700
            chunk, digest = file.name.split("-")
            assert chunk.isdecimal()
            assert len(digest) == 32

    @pytest.mark.parametrize("fault", ["full", "no folder"])
    def test_a_folder_that_fails_is_said_once_and_answers_come(
        self,
        alice: Reader,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
        fault: str,
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if fault == "full":
            monkeypatch.setattr(disk_module, "write_private", full)
        else:
            (tmp_path / "cache").write_text("no folder")
        passages = found(alice)
        with caplog.at_level(logging.WARNING, "membank.cache"):
            for _ in range(3):
                assert right(passages, read(alice, passages))
                cool()
        assert len(caplog.records) == 1
        assert "left alone" in caplog.text

    def test_the_budget_holds_and_a_restart_keeps_the_files(
        self, company: Company, alice: Reader, warm: list[Passage], tmp_path: Path
    ) -> None:
        assert Disk(tmp_path / "cache", 10**9).read(row(alice, warm[0])) is not None
        again = Disk(tmp_path / "cache", 8192)  # two blocks
        again.write(row(alice, warm[0]), files()[0].read_bytes())
        assert again.size() == (2, 8192)
        assert len(files()) == 2

    def test_a_draft_of_a_process_that_died_is_removed(
        self, warm: list[Passage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draft = files()[0].with_name("1-abc.123.456.tmp")
        draft.write_bytes(b"half")
        cache().sweep()
        assert draft.exists()
        monkeypatch.setattr(disk_module, "_DRAFT", -1.0)
        cache().sweep()
        assert not draft.exists()

    def test_without_a_database_a_sweep_removes_nothing(
        self, warm: list[Passage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object) -> set[tuple[int, str, str, str]]:
            raise UnavailableError("away")

        monkeypatch.setattr(disk_module, "alive", away)
        folder = disk()
        assert folder is not None
        with pytest.raises(UnavailableError):
            folder.sweep()
        assert len(files()) == 3


def row(reader: Reader, passage: Passage) -> Held:
    return readable(reader.asker, PROFILE, [passage.id])[passage.id]


def load(
    into: Cache,
    rows: Sequence[Held],
    fetch: Callable[[Sequence[Held]], Mapping[int, bytes]] | None = None,
) -> dict[int, KV]:
    """With invented bytes."""

    def decode(payloads: Sequence[tuple[Held, bytes]]) -> list[KV]:
        return [KV(torch.zeros(2, 1, 8, 16), torch.zeros(2, 1, 8, 16)) for _ in payloads]

    return into.load(rows, torch.float32, fetch or invented, decode)


def invented(rows: Sequence[Held]) -> dict[int, bytes]:
    return {held.chunk: b"kv" for held in rows}


class TestSingleFlight:
    ROWS = tuple(Held(1, chunk, "p", "1", "h", None, None) for chunk in range(3))

    def test_two_that_want_one_memory_load_it_once(self) -> None:
        into, asked = Cache(10**6, None), []
        begun, go_on = threading.Event(), threading.Event()

        def slow(rows: Sequence[Held]) -> dict[int, bytes]:
            asked.extend(held.chunk for held in rows)
            begun.set()
            assert go_on.wait(30)
            return invented(rows)

        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(load, into, self.ROWS[:2], slow)
            assert begun.wait(30)
            rest = [pool.submit(load, into, self.ROWS[1:2], slow) for _ in range(3)]
            while into.stats()["memory"]["hits"] + into.stats()["memory"]["misses"] < 2:
                pass
            go_on.set()
            same = [future.result(30)[1] for future in rest]
        assert asked == [0, 1]
        assert all(kv is first.result()[1] for kv in same)
        assert into.stats()["memory"]["hits"] == 3

    @pytest.mark.parametrize("outcome", ["nothing", "error"])
    def test_who_waited_for_one_that_may_not_read_loads_it_with_its_own_right(
        self, outcome: str
    ) -> None:
        into = Cache(10**6, None)
        begun, go_on = threading.Event(), threading.Event()

        def refused(rows: Sequence[Held]) -> dict[int, bytes]:
            begun.set()
            assert go_on.wait(30)
            if outcome == "error":
                raise BlobError("not for you")
            return {}

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(load, into, self.ROWS[:1], refused)
            assert begun.wait(30)
            second = pool.submit(load, into, self.ROWS[:1])
            go_on.set()
            assert set(second.result(30)) == {0}
            if outcome == "error":
                with pytest.raises(BlobError, match="not for you"):
                    first.result(30)
            else:
                assert first.result(30) == {}

    def test_many_threads_keep_within_the_budget_and_the_counts_add_up(self) -> None:
        one = 2 * 2 * 8 * 16 * 4
        into = Cache(5 * one, None)
        rows = [Held(t, c, "p", "1", "h", None, None) for t in (1, 2) for c in range(10)]

        def work(seed: int) -> int:
            order = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
            asked = 0
            for i in order * 5:
                same = [rows[i], rows[i - 1]]
                asked += len({held.chunk for held in same if held.tenant == rows[i].tenant})
                load(into, [held for held in same if held.tenant == rows[i].tenant])
            return asked

        with ThreadPoolExecutor(8) as pool:
            asked = sum(pool.map(work, range(8)))
        told = into.stats()["memory"]
        assert told["bytes"] <= 5 * one
        assert told["bytes"] == told["entries"] * one
        assert told["hits"] + told["misses"] == asked
        assert into._coming == {}
