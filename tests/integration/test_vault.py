"""Sealed memories: what opens them, what does not, and new keys for old."""

import base64
import hashlib
import json
import secrets
import sys
import threading
import types
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from cryptography.exceptions import InvalidTag
from typer.testing import CliRunner

from app.cli import app as membank
from app.db.session import Asker, transaction
from app.errors import UsageError, VaultError
from app.queue import outbox
from app.settings import settings
from app.store.blobs import load_blobs
from app.upkeep import data_keys as operators
from app.upkeep.reseal import reseal
from app.vault import keyring
from app.vault.keyring import KeyName
from app.vault.masters import masters
from app.vault.seal import Place, current_key, seal, unseal
from tests.conftest import NORTH, PROFILE, Company, administer, ask, work_off
from workers import encoding

BODY = "The badge is orange.\n\nThe door is blue.\n\nThe dog is grey."
MEMORIES = {b"kv of " + part.encode() for part in BODY.split("\n\n")}


def new_master() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture
def set_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets or takes away settings of the vault: set_master(master_key=..., keyring=None)."""

    def change(**values: object) -> None:
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(f"MEMBANK_{name.upper()}", raising=False)
            else:
                monkeypatch.setenv(f"MEMBANK_{name.upper()}", str(value))
        settings.cache_clear()

    change(keyring=tmp_path / "keyring")
    return change


@pytest.fixture
def master(set_master: Callable[..., None]) -> str:
    key = new_master()
    set_master(master_key=key)
    return key


@pytest.fixture
def sealed(company: Company, master: str) -> Company:
    company.store("a", BODY)
    assert work_off() == 3
    return company


def read(company: Company) -> set[bytes]:
    """Every memory of the company, as one who may read all of it loads them."""
    reader = company.reader("alice")
    chunks = [c for (c,) in ask(reader, "SELECT chunk_id FROM memory_key")]
    return set(load_blobs(reader, PROFILE, chunks).values())


def versions(superuser: psycopg.Connection, tenant: int) -> list[int | None]:
    rows = superuser.execute(
        "SELECT key_version FROM memory_blob WHERE tenant_id = %s ORDER BY 1", [tenant]
    )
    return [row[0] for row in rows]


def files() -> set[str]:
    return {file.stem for file in keyring.folder().glob("*")}


def run(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(membank, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, object] = json.loads(result.stdout)
    return found


class TestWorkers:
    def test_one_without_the_master_key_leaves_the_work_to_others(
        self,
        sealed: Company,
        new_company: Callable[[str], Company],
        set_master: Callable[..., None],
        master: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        other = new_company("open")
        asker = Asker("worker", sealed.tenant)
        for company in (other, sealed):
            company.store("new", "The gate is green.")
        set_master(master_key=None)
        monkeypatch.setattr(encoding, "_encode", lambda texts: [(NORTH, b"kv")] * len(texts))
        profile = types.SimpleNamespace(profile=types.SimpleNamespace(id=PROFILE))
        monkeypatch.setattr(encoding, "models", lambda: profile)
        work = outbox.claim(PROFILE, 10, 60.0)
        assert len(work) == 2
        assert encoding.encode(work) == 1
        assert ask(Asker("worker", other.tenant), "SELECT count(*) FROM memory_blob") == [(1,)]
        [(attempts, error)] = ask(
            asker, "SELECT attempts, last_error FROM outbox WHERE lease_token IS NULL"
        )
        assert attempts == 0
        assert error.startswith("VaultError: ")
        assert "set MEMBANK_MASTER_KEY_FILE" in error
        assert outbox.claim(PROFILE, 10, 60.0) == []
        assert ask(asker, "SELECT count(*) FROM dead_letter") == [(0,)]
        administer("UPDATE outbox SET not_before = now()")
        set_master(master_key=master)
        assert work_off() == 1


class TestSealing:
    def test_nothing_is_sealed_without_a_master_key(
        self, company: Company, set_master: Callable[..., None], superuser: psycopg.Connection
    ) -> None:
        company.store("a", BODY)
        work_off()
        assert versions(superuser, company.tenant) == [None] * 3
        assert read(company) == MEMORIES
        assert files() == set()

    def test_a_sealed_memory_is_read_again_and_its_bytes_are_not_in_the_table(
        self, sealed: Company, superuser: psycopg.Connection
    ) -> None:
        assert read(sealed) == MEMORIES
        assert versions(superuser, sealed.tenant) == [1] * 3
        for payload, digest in superuser.execute("SELECT payload, sha256 FROM memory_blob"):
            assert b"kv of" not in payload
            assert hashlib.sha256(payload).hexdigest() == digest

    def test_no_two_nonces_are_alike(self, sealed: Company) -> None:
        key = KeyName(*_key(sealed))
        place = Place(1, PROFILE)
        assert len({seal(key, place, b"kv")[:12] for _ in range(100)}) == 100

    def test_the_database_holds_neither_the_data_key_nor_what_wraps_it(
        self, sealed: Company, superuser: psycopg.Connection, master: str
    ) -> None:
        [file] = keyring.folder().glob("*")
        kept = json.loads(file.read_text())
        rows = "".join(
            str(row)
            for (table,) in superuser.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
                " AND relkind = 'r'"
            ).fetchall()
            for row in superuser.execute(f"SELECT t::text FROM {table} t")
        )
        assert kept["wrapped"] not in rows
        assert master not in rows
        assert file.stat().st_mode & 0o077 == keyring.folder().stat().st_mode & 0o077 == 0

    def test_eight_workers_at_once_make_one_first_key(
        self, company: Company, master: str, superuser: psycopg.Connection
    ) -> None:
        start = threading.Barrier(8)

        def first(_: int) -> KeyName | None:
            start.wait()
            with transaction(Asker("worker", company.tenant)) as connection:
                return current_key(connection, company.tenant)

        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(first, range(8)))
        [[kept]] = superuser.execute("SELECT id FROM tenant_key")
        assert {key.id for key in found if key} == {kept}
        assert files() == {str(kept)}


def _key(company: Company, version: int = 1) -> tuple[int, int, uuid.UUID]:
    [[name]] = ask(
        Asker("admin"),
        "SELECT id FROM tenant_key WHERE tenant_id = :t AND version = :v",
        t=company.tenant,
        v=version,
    )
    return company.tenant, version, name


class TestWhatDoesNotOpen:
    def test_a_memory_in_the_row_of_another_chunk(
        self, sealed: Company, superuser: psycopg.Connection
    ) -> None:
        superuser.execute(
            "UPDATE memory_blob SET payload = (SELECT payload FROM memory_blob ORDER BY chunk_id"
            " LIMIT 1) WHERE chunk_id = (SELECT max(chunk_id) FROM memory_blob)"
        )
        with pytest.raises(VaultError, match="does not open"):
            read(sealed)

    def test_a_memory_in_the_row_of_another_tenant(
        self,
        sealed: Company,
        new_company: Callable[[str], Company],
        superuser: psycopg.Connection,
    ) -> None:
        other = new_company("northwind")
        other.store("a", BODY)
        work_off()
        superuser.execute(
            "UPDATE memory_blob b SET payload = (SELECT payload FROM memory_blob"
            " WHERE tenant_id = %s ORDER BY chunk_id LIMIT 1) WHERE tenant_id = %s",
            [sealed.tenant, other.tenant],
        )
        with pytest.raises(VaultError, match="does not open"):
            read(other)
        assert read(sealed) == MEMORIES

    def test_a_memory_under_another_tenants_key(self, sealed: Company) -> None:
        """Even with the same key bytes, tenant, chunk, profile and version are part of it."""
        key, place = KeyName(*_key(sealed)), Place(7, PROFILE)
        kept = seal(key, place, b"kv")
        cipher = keyring.cipher(key)
        for tenant, chunk, profile, version in (
            (key.tenant + 1, 7, PROFILE, 1),
            (key.tenant, 8, PROFILE, 1),
            (key.tenant, 7, "another", 1),
            (key.tenant, 7, PROFILE, 2),
        ):
            moved = Place(chunk, profile).within(KeyName(tenant, version, key.id))
            assert moved != place.within(key)
            with pytest.raises(InvalidTag):
                cipher.decrypt(kept[:12], kept[12:], moved)

    def test_a_memory_that_says_another_version(
        self, sealed: Company, superuser: psycopg.Connection
    ) -> None:
        operators.rotate(sealed.name)
        superuser.execute("UPDATE memory_blob SET key_version = 2")
        with pytest.raises(VaultError, match="does not open with version 2"):
            read(sealed)

    @pytest.mark.parametrize("place", [0, 11, 12, 20, -17, -1])
    def test_a_memory_with_one_bit_flipped(self, sealed: Company, place: int) -> None:
        key, row = KeyName(*_key(sealed)), Place(7, PROFILE)
        kept = bytearray(seal(key, row, b"some keys and values"))
        kept[place] ^= 1
        with pytest.raises(VaultError, match="memory 7 does not open"):
            unseal(key, row, bytes(kept))

    @pytest.mark.parametrize("size", [0, 5, 12, 27])
    def test_a_memory_that_is_cut_short(self, sealed: Company, size: int) -> None:
        key, row = KeyName(*_key(sealed)), Place(7, PROFILE)
        with pytest.raises(VaultError, match="memory 7 does not open"):
            unseal(key, row, seal(key, row, b"kv")[:size])

    def test_without_a_master_key_reading_and_writing_name_the_setting(
        self, sealed: Company, set_master: Callable[..., None]
    ) -> None:
        set_master(master_key=None)
        with pytest.raises(VaultError, match="set MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY"):
            read(sealed)
        sealed.store("b", "The cat is black.")
        with pytest.raises(VaultError, match="set MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY"):
            work_off()

    def test_with_a_wrong_master_key_both_are_named(
        self, sealed: Company, set_master: Callable[..., None]
    ) -> None:
        right = masters()[0].id
        set_master(master_key=new_master())
        with pytest.raises(VaultError, match=f"{right}.* gives {masters()[0].id}"):
            read(sealed)

    def test_without_the_keys_file(self, sealed: Company, tmp_path: Path) -> None:
        keyring.destroy(KeyName(*_key(sealed)))
        with pytest.raises(VaultError, match=r"data key .* is not in .* set MEMBANK_KEYRING"):
            read(sealed)

    def test_a_key_whose_file_is_anothers(
        self, sealed: Company, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("northwind")
        other.store("a", BODY)
        work_off()
        ours, theirs = KeyName(*_key(sealed)), KeyName(*_key(other))
        theirs.file.write_text(ours.file.read_text())
        keyring._cipher.cache_clear()
        with pytest.raises(VaultError, match="changed, or belongs to another key"):
            read(other)

    @pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"tenant": 1}'])
    def test_a_key_whose_file_is_damaged(self, sealed: Company, content: str) -> None:
        KeyName(*_key(sealed)).file.write_text(content)
        keyring._cipher.cache_clear()
        with pytest.raises(VaultError, match="cannot be read"):
            read(sealed)


class TestMasters:
    def test_a_file_is_taken_if_nobody_else_may_read_it(
        self, set_master: Callable[..., None], tmp_path: Path
    ) -> None:
        file = tmp_path / "master"
        file.write_text(new_master() + "\n")
        file.chmod(0o640)
        set_master(master_key_file=file)
        with pytest.raises(UsageError, match="open to other users: run chmod 600"):
            masters()
        file.chmod(0o600)
        assert len(masters()) == 1

    @pytest.mark.parametrize("text", ["short", "A" * 44, "ü" * 43, "%" * 44])
    def test_what_is_no_key_is_refused_and_not_repeated(
        self, set_master: Callable[..., None], text: str
    ) -> None:
        set_master(master_key=text)
        with pytest.raises(UsageError, match="MEMBANK_MASTER_KEY is not 32 bytes") as caught:
            masters()
        assert text not in str(caught.value)

    def test_an_empty_one_is_none(self, set_master: Callable[..., None]) -> None:
        set_master(master_key="")
        assert masters() == ()

    def test_two_masters_are_one_too_many(
        self, master: str, set_master: Callable[..., None], tmp_path: Path
    ) -> None:
        file = tmp_path / "master"
        file.write_text(master)
        file.chmod(0o600)
        set_master(master_key_file=file)
        with pytest.raises(UsageError, match="more than one master key"):
            masters()

    def test_a_key_management_service_is_a_master(
        self,
        company: Company,
        set_master: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Service:
            id = "service/1"
            bindings: list[bytes] = []  # noqa: RUF012

            def wrap(self, key: bytes, binding: bytes) -> bytes:
                self.bindings.append(binding)
                return key[::-1]

            def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
                assert binding in self.bindings
                return wrapped[::-1]

        module = types.ModuleType("a_service")
        module.client = Service  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "a_service", module)
        set_master(master_kms="a_service:client")
        company.store("a", BODY)
        work_off()
        assert read(company) == MEMORIES
        assert len(Service.bindings) == 1

    @pytest.mark.parametrize("name", ["no_such_module:x", "json:nothing", "json"])
    def test_a_service_that_is_not_there_is_named(
        self, set_master: Callable[..., None], name: str
    ) -> None:
        set_master(master_kms=name)
        with pytest.raises(UsageError, match="MEMBANK_MASTER_KMS="):
            masters()


class TestNewKeys:
    def test_what_was_plain_is_sealed_in_the_background(
        self, company: Company, set_master: Callable[..., None], superuser: psycopg.Connection
    ) -> None:
        company.store("a", BODY)
        work_off()
        assert not reseal().any
        set_master(master_key=new_master())
        assert read(company) == MEMORIES
        assert reseal().blobs == 3
        assert versions(superuser, company.tenant) == [1] * 3
        assert read(company) == MEMORIES
        assert not reseal().any

    def test_the_relay_seals_by_itself(
        self,
        company: Company,
        set_master: Callable[..., None],
        superuser: psycopg.Connection,
    ) -> None:
        company.store("a", BODY)
        work_off()
        set_master(master_key=new_master(), redis_url="redis://127.0.0.1:1/0")
        from workers.maintenance import rows_regularly

        stop = threading.Event()
        relay = threading.Thread(target=rows_regularly, args=(stop,))
        relay.start()
        try:
            for _ in range(600):
                if versions(superuser, company.tenant) == [1] * 3:
                    break
                stop.wait(0.1)
        finally:
            stop.set()
            relay.join()
        assert read(company) == MEMORIES
        assert versions(superuser, company.tenant) == [1] * 3

    def test_a_tenant_without_memories_gets_no_key(self, company: Company, master: str) -> None:
        reseal()
        assert files() == set()

    def test_a_rotation_that_is_interrupted_goes_on_later(
        self, sealed: Company, superuser: psycopg.Connection
    ) -> None:
        old = KeyName(*_key(sealed))
        backup = superuser.execute("SELECT chunk_id, payload FROM memory_blob").fetchall()
        assert run("vault", "rotate", "--tenant", sealed.name) == {
            "tenant": sealed.name,
            "version": 2,
        }

        class AfterOnePage(threading.Event):
            def is_set(self) -> bool:
                return 2 in versions(superuser, sealed.tenant)

        done = reseal(AfterOnePage(), page=1)
        assert (done.blobs, done.keys_destroyed) == (1, 0)
        assert versions(superuser, sealed.tenant) == [1, 1, 2]
        assert read(sealed) == MEMORIES
        assert old.file.exists()

        done = reseal(page=1)
        assert (done.blobs, done.keys_destroyed) == (2, 1)
        assert versions(superuser, sealed.tenant) == [2] * 3
        assert read(sealed) == MEMORIES
        assert files() == {str(_key(sealed, 2)[2])}
        for payload, digest in superuser.execute("SELECT payload, sha256 FROM memory_blob"):
            assert hashlib.sha256(payload).hexdigest() == digest
        with pytest.raises(VaultError, match=r"data key .* is not in"):
            unseal(old, Place(backup[0][0], PROFILE), backup[0][1])

    def test_a_key_is_not_destroyed_while_a_worker_seals_with_it(
        self, sealed: Company, superuser: psycopg.Connection
    ) -> None:
        old = KeyName(*_key(sealed))
        with transaction(Asker("worker", sealed.tenant)) as connection:
            assert current_key(connection, sealed.tenant) == old
            operators.rotate(sealed.name)
            rotation = threading.Thread(target=reseal)
            rotation.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while superuser.execute(waiting).fetchone() == (0,):
                assert rotation.is_alive(), "it did not wait"
            assert old.file.exists()
            # What the worker writes comes after the pages, and before the look for what is left.
            connection.exec_driver_sql("UPDATE memory_blob SET key_version = 1")
        rotation.join()
        assert old.file.exists()
        superuser.execute("DELETE FROM memory_blob")
        assert reseal().keys_destroyed == 1
        assert not old.file.exists()

    def test_one_tenants_missing_key_holds_no_other_up(
        self, sealed: Company, new_company: Callable[[str], Company], superuser: psycopg.Connection
    ) -> None:
        other = new_company("northwind")
        other.store("a", BODY)
        work_off()
        keyring.destroy(KeyName(*_key(sealed)))
        for each in (sealed, other):
            operators.rotate(each.name)
        done = reseal()
        assert len(done.faults) == 1
        assert versions(superuser, other.tenant) == [2] * 3
        assert versions(superuser, sealed.tenant) == [1] * 3

    def test_a_tenant_key_that_is_given_up_takes_its_memories_along(
        self, sealed: Company, superuser: psycopg.Connection
    ) -> None:
        """After the keyring was lost: the memories are made again from the texts."""
        from app.upkeep.reconcile import reconcile

        keyring.destroy(KeyName(*_key(sealed)))
        administer("DELETE FROM tenant_key WHERE tenant_id = :t", t=sealed.tenant)
        assert versions(superuser, sealed.tenant) == []
        assert reconcile().queued_chunks == 3
        assert work_off() == 3
        assert read(sealed) == MEMORIES

    def test_a_new_master_key_wraps_the_old_data_keys(
        self, sealed: Company, master: str, set_master: Callable[..., None], tmp_path: Path
    ) -> None:
        old = tmp_path / "old"
        old.write_text(master)
        old.chmod(0o600)
        set_master(master_key=new_master(), old_master_key_file=old)
        assert read(sealed) == MEMORIES  # meanwhile both open
        assert run("vault", "rewrap") == {"rewrapped": 1}
        assert run("vault", "rewrap") == {"rewrapped": 0}
        set_master(old_master_key_file=None)
        keyring._cipher.cache_clear()
        assert read(sealed) == MEMORIES
        set_master(master_key=master)
        with pytest.raises(VaultError, match="is wrapped by master key"):
            read(sealed)

    def test_rotating_needs_a_master_key(
        self, company: Company, set_master: Callable[..., None]
    ) -> None:
        with pytest.raises(UsageError, match="no master key is set"):
            operators.rotate(company.name)

    def test_status_says_which_keys_there_are(self, sealed: Company) -> None:
        operators.rotate(sealed.name)
        found = run("vault", "status")
        assert found["masters"] == [masters()[0].id]
        [tenant] = found["tenants"]  # type: ignore[misc]
        assert (tenant["tenant"], tenant["plain_blobs"]) == (sealed.name, 0)
        assert [(k["version"], k["blobs"], k["in_keyring"]) for k in tenant["keys"]] == [
            (1, 3, True),
            (2, 0, True),
        ]
        told = CliRunner().invoke(membank, ["vault", "status"]).stdout
        assert f"{sealed.name}: 0 memories not encrypted\n  version 1: 3 memories\n" in told
