"""The object store: written before its row, gone after the last row, moved both ways."""

import base64
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from app.access.quota import Quota
from app.answer.cache import _cache
from app.cli import app as membank
from app.db.session import Asker, keeping
from app.errors import BlobError, MembankError, UnavailableError, UsageError
from app.settings import settings
from app.store import objects
from app.store.blobs import load_blobs
from app.store.objects import Objects, planned
from app.upkeep.erase import erase
from app.upkeep.leftovers import collect, sweep
from app.upkeep.move import move, waiting
from app.upkeep.reseal import reseal
from tests import edges
from tests.conftest import PROFILE, Company, administer, ask, work_off
from tests.edges import quota_of, set_quota
from tests.memories import found, learn, read, reader_of, right
from tests.stores import ACCOUNT, S3, Folder, Store, s3_service

LATER = datetime.now(UTC) + timedelta(hours=2)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_service() as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "s3"])
def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """An object store that the program may be told of."""
    if request.param == "folder":
        return Folder(tmp_path / "objects")
    endpoint = request.getfixturevalue("s3")
    for name, value in (ACCOUNT | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    return S3(endpoint, f"bucket-{secrets.token_hex(8)}")


@pytest.fixture
def store(elsewhere: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The object store that the program uses."""
    use(monkeypatch, MEMBANK_BLOB_STORE=elsewhere.url)
    return elsewhere


def use(monkeypatch: pytest.MonkeyPatch, **variables: str | None) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    settings.cache_clear()
    _cache.cache_clear()


def blobs_of(company: Company, principal: str = "alice") -> list[bytes]:
    asker = company.reader(principal)
    chunks = [row[0] for row in ask(asker, "SELECT chunk_id FROM memory_key ORDER BY 1")]
    return list(load_blobs(asker, PROFILE, chunks).values())


_IN_TRANSACTION = (
    "SELECT usename, state, query FROM pg_stat_activity WHERE datname = current_database()"
    " AND xact_start IS NOT NULL AND usename LIKE 'membank%'"
)


@pytest.fixture
def watched(
    superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[Any]]]:
    """Each call of the object store, with the transactions that were open meanwhile."""
    seen: list[tuple[str, list[Any]]] = []

    def watch(kind: str) -> None:
        plain = getattr(Objects, kind)

        def looked_at(self: Objects, items: object) -> object:
            seen.append((kind, superuser.execute(_IN_TRANSACTION).fetchall()))
            return plain(self, items)

        monkeypatch.setattr(Objects, kind, looked_at)

    watch("put")
    watch("get")
    return seen


class TestWriting:
    def test_the_bytes_are_an_object_named_by_tenant_and_hashes(
        self, company: Company, store: Store
    ) -> None:
        company.store("../d'; DROP", "one\n\ntwo")
        work_off()
        rows = ask(Asker("admin"), "SELECT payload, location, size, sha256 FROM memory_blob")
        assert [row[0] for row in rows] == [None, None]
        assert store.names() == sorted(row[1] for row in rows)
        for _, location, size, digest in rows:
            tenant, space, name = location.split("/")
            assert (int(tenant), len(space), name) == (company.tenant, 16, digest)
            assert len(store.read(location)) == size
        if isinstance(store, Folder):
            assert store.path.stat().st_mode & 0o777 == 0o700
        assert sorted(blobs_of(company)) == [b"kv of one", b"kv of two"]

    def test_a_store_that_does_not_answer_leaves_the_work_in_the_queue(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        company.store("d", "one")

        def away(*_: object) -> None:
            raise UnavailableError("the object store does not answer")

        monkeypatch.setattr(Objects, "put", away)
        with pytest.raises(UnavailableError):
            work_off()
        assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(1,)]
        assert ask(Asker("admin"), "SELECT count(*) FROM memory_key") == [(0,)]

    def test_no_transaction_is_open_while_the_store_is_written(
        self, company: Company, store: Store, watched: list[tuple[str, list[Any]]]
    ) -> None:
        company.store("d", "one\n\ntwo")
        assert work_off() == 2
        assert watched == [("put", [])]

    def test_what_is_being_written_is_not_collected_though_a_row_let_go_of_it(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put, removed = Objects.put, []

        def overtaken(self: Objects, objects: Mapping[str, bytes]) -> None:
            put(self, objects)
            for name in objects:
                administer(
                    "INSERT INTO object_gone (tenant_id, location) VALUES (:tenant, :name)",
                    tenant=company.tenant,
                    name=name,
                )
            removed.extend([collect(), sum(sweep(LATER))])

        monkeypatch.setattr(Objects, "put", overtaken)
        company.store("d", "one")
        assert work_off() == 1
        assert removed == [0, 0]
        assert blobs_of(company) == [b"kv of one"]
        assert ask(Asker("admin"), "SELECT count(*) FROM object_gone") == [(1,)]
        assert collect() == 0
        assert ask(Asker("admin"), "SELECT count(*) FROM object_gone") == [(0,)]
        assert len(store.names()) == 1

    def test_an_object_whose_lease_was_lost_meanwhile_is_taken_back(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = Objects.put

        def overtaken(self: Objects, objects: Mapping[str, bytes]) -> None:
            put(self, objects)
            administer("DELETE FROM document")

        monkeypatch.setattr(Objects, "put", overtaken)
        company.store("d", "one")
        assert work_off() == 0
        assert store.names() == []

    def test_a_quota_counts_the_bytes_of_objects(self, company: Company, store: Store) -> None:
        set_quota(company.tenant, Quota(bytes=20))
        company.store("d", "one\n\ntwo\n\nsix")
        assert work_off() == 2
        assert quota_of(company.tenant)[1].bytes == 18
        assert ask(Asker("admin"), "SELECT count(*) FROM dead_letter") == [(1,)]
        assert len(store.names()) == 2

    @pytest.mark.parametrize(
        ("payload", "location", "size"),
        [
            (None, None, None),
            (b"kv", "{own}/p/s", 2),
            (None, "{other}/p/s", 2),
            (None, "p/s", 2),
            (None, "{own}/p/s", None),
        ],
    )
    def test_a_row_names_one_place_and_no_other_tenants(
        self, company: Company, payload: bytes | None, location: str | None, size: int | None
    ) -> None:
        company.store("d", "one")
        work_off()
        named = location and location.format(own=company.tenant, other=company.tenant + 1)
        with pytest.raises(DBAPIError, match="memory_blob_"):
            administer(
                "UPDATE memory_blob SET payload = :p, location = :l, size = :s",
                p=payload,
                l=named,
                s=size,
            )

    @pytest.mark.parametrize("value", ["gs://b/x", "http://host/x"])
    def test_a_store_that_is_none_is_refused(
        self, company: Company, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        use(monkeypatch, MEMBANK_BLOB_STORE=value)
        with pytest.raises(UsageError, match="give a folder or s3://"):
            objects.writing()

    @pytest.mark.parametrize("elsewhere", ["s3"], indirect=True)
    def test_an_s3_service_that_does_not_answer_is_an_error_that_names_it(
        self, company: Company, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9", MEMBANK_BLOB_STORE=elsewhere.url)
        company.store("d", "one")
        with pytest.raises(UnavailableError, match=f"object store {elsewhere.url} does not answer"):
            work_off()
        assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(1,)]


class TestReading:
    def test_both_kinds_are_read_at_the_same_time(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        company.store("there", "one")
        learn()
        use(monkeypatch, MEMBANK_BLOB_STORE=None, MEMBANK_OLD_BLOB_STORE=store.url)
        company.store("here", "two")
        learn()
        assert len(store.names()) == 1
        reader = reader_of(company)
        assert len(found(reader)) == 2
        assert right(found(reader), read(reader, found(reader)))

    @pytest.mark.parametrize("fault", ["gone", "damaged"])
    def test_an_object_that_is_not_there_or_damaged_is_an_error_that_says_so(
        self, company: Company, store: Store, fault: str
    ) -> None:
        company.store("d", "one")
        learn()
        [name] = store.names()
        if fault == "gone":
            store.remove(name)
        else:
            store.write(name, b"something else")
        reader = reader_of(company)
        with pytest.raises(BlobError, match="missing" if fault == "gone" else "damaged"):
            read(reader, found(reader))

    def test_without_a_setting_it_is_said_what_to_set(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        company.store("d", "one")
        work_off()
        use(monkeypatch, MEMBANK_BLOB_STORE=None)
        with pytest.raises(UsageError, match="MEMBANK_OLD_BLOB_STORE"):
            blobs_of(company)


class TestLettingGo:
    def test_forgetting_lets_the_relay_remove_the_objects(
        self, company: Company, store: Store
    ) -> None:
        company.store("a", "one\n\ntwo")
        company.store("b", "three")
        work_off()
        edges.forget(company.tenant, "a")
        assert len(store.names()) == 3
        assert collect() == 2
        assert len(store.names()) == 1
        assert blobs_of(company) == [b"kv of three"]
        assert ask(Asker("admin"), "SELECT count(*) FROM object_gone") == [(0,)]

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM document",
            "DELETE FROM memory_blob",
            "DELETE FROM tenant",
            "TRUNCATE memory_blob",
            "TRUNCATE document CASCADE",
        ],
    )
    def test_so_does_any_sql(self, company: Company, store: Store, statement: str) -> None:
        company.store("a", "one\n\ntwo")
        work_off()
        administer(statement)
        assert collect() == 2
        assert store.names() == []

    def test_an_edit_keeps_the_objects_of_what_stayed(self, company: Company, store: Store) -> None:
        company.store("a", "one\n\ntwo")
        work_off()
        administer("UPDATE document SET text = E'one\n\nthree'")
        work_off()
        assert collect() == 1
        assert sorted(blobs_of(company)) == [b"kv of one", b"kv of three"]

    def test_equal_bytes_are_one_object_until_the_last_row_goes(
        self, company: Company, store: Store
    ) -> None:
        company.store("a", "same")
        company.store("b", "same")
        work_off()
        assert len(store.names()) == 1
        edges.forget(company.tenant, "a")
        assert collect() == 0
        assert blobs_of(company) == [b"kv of same"]
        edges.forget(company.tenant, "b")
        assert collect() == 1
        assert store.names() == []

    def test_an_object_that_is_being_written_again_is_not_removed(
        self, company: Company, store: Store
    ) -> None:
        company.store("a", "one")
        work_off()
        administer("DELETE FROM memory_blob")
        blobs = [(PROFILE, b"kv of one")]
        [again] = planned(company.tenant, blobs, objects.writing())
        with keeping(Asker("worker", company.tenant), {again.location or ""}) as (_, begin):
            store.write(again.location or "", b"kv of one")
            assert collect() == 0
            with begin() as connection:
                connection.execute(
                    text(
                        "INSERT INTO memory_blob (tenant_id, chunk_id, profile_id, sha256,"
                        " location, size) SELECT tenant_id, chunk_id, profile_id, :sha, :location,"
                        " 9 FROM memory_key WHERE tenant_id = :tenant"
                    ),
                    {"sha": again.sha256, "location": again.location, "tenant": company.tenant},
                )
        assert collect() == 0
        assert blobs_of(company) == [b"kv of one"]
        assert ask(Asker("admin"), "SELECT count(*) FROM object_gone") == [(0,)]

    def test_erasing_a_tenant_removes_its_objects_and_no_others(
        self, company: Company, new_company: Callable[[str], Company], store: Store
    ) -> None:
        other = new_company("northwind")
        for each in (company, other):
            each.store("a", "one\n\ntwo")
        work_off()
        receipt = erase(company.name)
        assert receipt["objects"] == 2
        assert {name.split("/")[0] for name in store.names()} == {str(other.tenant)}
        assert ask(Asker("admin"), "SELECT count(*) FROM object_gone") == [(0,)]

    def test_an_erasure_goes_on_without_the_store_and_the_relay_ends_it(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        company.store("a", "one")
        work_off()

        def away(*_: object) -> None:
            raise UnavailableError("the object store does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(Objects, "remove", away)
            assert erase(company.name)["objects"] == 1
            assert len(store.names()) == 1
        assert collect() == 1
        assert store.names() == []

    def test_a_sweep_removes_old_objects_without_a_row_and_nothing_else(
        self, company: Company, store: Store, superuser: psycopg.Connection
    ) -> None:
        company.store("a", "one\n\ntwo")
        work_off()
        superuser.execute(
            "ALTER TABLE memory_blob DISABLE TRIGGER object_let_go;"
            "DELETE FROM memory_blob WHERE chunk_id = (SELECT min(chunk_id) FROM memory_blob);"
            "ALTER TABLE memory_blob ENABLE ALWAYS TRIGGER object_let_go"
        )
        store.write("readme.txt", b"not ours")
        store.write(f"{10**12}/space/hash", b"of a tenant that there is not")
        assert collect() == 0
        assert sum(sweep()) == 0  # too young: a worker may be writing the row
        assert sum(sweep(LATER)) == 2
        assert len(store.names()) == 2
        assert "readme.txt" in store.names()
        assert len(blobs_of(company)) == 1


class TestMoving:
    @pytest.fixture
    def filled(self, company: Company) -> Company:
        company.store("a", "\n\n".join(f"text {i}" for i in range(120)))
        learn()
        return company

    def test_there_and_back_changes_no_memory(
        self, filled: Company, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = reader_of(filled)
        before = ask(Asker("admin"), "SELECT chunk_id, sha256, payload FROM memory_blob ORDER BY 1")
        use(monkeypatch, MEMBANK_BLOB_STORE=elsewhere.url)
        assert waiting("object") == 120
        pages = move("object")
        assert next(pages).blobs == 50
        pages.close()  # it is killed
        passages = found(reader)
        assert right(passages, read(reader, passages))
        assert waiting("object") == 70
        assert sum(page.blobs for page in move("object")) == 70
        assert len(elsewhere.names()) == 120
        _cache.cache_clear()
        assert right(passages, read(reader, passages))

        with pytest.raises(UsageError, match="MEMBANK_OLD_BLOB_STORE"):
            next(move("postgres"))
        use(monkeypatch, MEMBANK_BLOB_STORE=None, MEMBANK_OLD_BLOB_STORE=elsewhere.url)
        assert sum(page.blobs for page in move("postgres")) == 120
        assert collect() == 120
        assert elsewhere.names() == []
        use(monkeypatch, MEMBANK_OLD_BLOB_STORE=None)
        after = ask(Asker("admin"), "SELECT chunk_id, sha256, payload FROM memory_blob ORDER BY 1")
        assert after == before
        assert right(passages, read(reader, passages))

    def test_no_transaction_is_open_while_the_store_works(
        self,
        filled: Company,
        elsewhere: Store,
        watched: list[tuple[str, list[Any]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        use(monkeypatch, MEMBANK_BLOB_STORE=elsewhere.url)
        assert sum(page.blobs for page in move("object")) == 120
        use(monkeypatch, MEMBANK_BLOB_STORE=None, MEMBANK_OLD_BLOB_STORE=elsewhere.url)
        assert sum(page.blobs for page in move("postgres")) == 120
        assert watched == [("put", [])] * 3 + [("get", [])] * 3

    def test_a_memory_that_is_encoded_again_meanwhile_stays_and_leaves_no_object(
        self,
        filled: Company,
        store: Store,
        superuser: psycopg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        put = Objects.put

        def overtaken(self: Objects, objects: Mapping[str, bytes]) -> None:
            put(self, objects)
            superuser.execute(
                "UPDATE memory_blob SET payload = 'newer', sha256 = encode(sha256('newer'), 'hex')"
                " WHERE location IS NULL AND NOT EXISTS"
                " (SELECT FROM memory_blob WHERE payload = 'newer')"
                " AND chunk_id = (SELECT min(chunk_id) FROM memory_blob)"
            )

        monkeypatch.setattr(Objects, "put", overtaken)
        assert sum(page.blobs for page in move("object")) == 119
        left = superuser.execute("SELECT payload FROM memory_blob WHERE location IS NULL")
        assert left.fetchall() == [(b"newer",)]
        assert len(store.names()) == 119

    def test_a_missing_object_holds_no_other_up(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        company.store("a", "one\n\ntwo")
        learn()
        store.remove(store.names()[0])
        use(monkeypatch, MEMBANK_BLOB_STORE=None, MEMBANK_OLD_BLOB_STORE=store.url)
        result = CliRunner().invoke(membank, ["store", "move", "--to", "postgres", "--json"])
        assert result.exit_code == 1
        assert json.loads(result.stdout) == {"to": "postgres", "moved": 1, "missing": 1}
        assert waiting("postgres") == 1

    def test_without_a_store_nothing_is_moved(self, filled: Company) -> None:
        with pytest.raises(MembankError, match="MEMBANK_BLOB_STORE"):
            next(move("object"))
        result = CliRunner().invoke(membank, ["store", "move", "--to", "elsewhere"])
        assert result.exit_code == 2

    def test_who_reads_meanwhile_gets_every_memory(self, filled: Company, store: Store) -> None:
        reader = reader_of(filled)
        passages, over, wrong = found(reader), threading.Event(), []

        def readers() -> None:
            while not over.is_set():
                _cache.cache_clear()
                if not right(passages[:20], read(reader, passages[:20])):
                    wrong.append(1)

        thread = threading.Thread(target=readers)
        thread.start()
        assert sum(page.blobs for page in move("object")) == 120
        over.set()
        thread.join(60)
        assert not thread.is_alive()
        assert wrong == []


class TestSealed:
    @pytest.fixture(autouse=True)
    def _master(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        use(monkeypatch, MEMBANK_MASTER_KEY=key, MEMBANK_KEYRING=str(tmp_path / "keyring"))

    def test_objects_and_cache_files_hold_only_what_is_sealed(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        use(monkeypatch, MEMBANK_CACHE_FOLDER=str(tmp_path / "cache"))
        company.store("d", "one\n\ntwo")
        learn()
        reader = reader_of(company)
        passages = found(reader)
        assert right(passages, read(reader, passages))
        _cache.cache_clear()
        assert right(passages, read(reader, passages))
        cached = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
        whole = {store.read(name) for name in store.names()}
        assert {p.read_bytes() for p in cached} == whole
        assert len(whole) == 2
        assert all(b"membank" not in data and b"codec" not in data for data in whole)

    def test_a_new_key_writes_new_objects_and_lets_the_old_ones_go(
        self, company: Company, store: Store, watched: list[tuple[str, list[Any]]]
    ) -> None:
        company.store("d", "one\n\ntwo")
        work_off()
        before = store.names()
        CliRunner().invoke(membank, ["vault", "rotate", "--tenant", company.name])
        watched.clear()
        assert reseal().blobs == 2
        assert watched == [("get", []), ("put", [])]
        assert collect() == 2
        assert len(store.names()) == 2
        assert not set(store.names()) & set(before)
        assert sorted(blobs_of(company)) == [b"kv of one", b"kv of two"]

    def test_plain_rows_become_sealed_objects(
        self, company: Company, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = settings().master_key
        use(monkeypatch, MEMBANK_MASTER_KEY=None, MEMBANK_BLOB_STORE=None)
        company.store("d", "one")
        work_off()
        assert key is not None
        use(
            monkeypatch,
            MEMBANK_MASTER_KEY=key.get_secret_value(),
            MEMBANK_BLOB_STORE=store.url,
        )
        assert reseal().blobs == 1
        assert b"kv of one" not in store.read(store.names()[0])
        assert blobs_of(company) == [b"kv of one"]
