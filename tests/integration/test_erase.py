"""A tenant that is erased: nothing is left of it, and its memories open nowhere any more."""

import base64
import json
import secrets
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from app.access.quota import Quota
from app.cli import app as membank
from app.errors import NotFoundError, UsageError, VaultError
from app.settings import settings
from app.store.blobs import load_blobs
from app.upkeep.erase import erase
from app.vault import keyring
from app.vault.keyring import KeyName
from app.vault.seal import Place, unseal
from tests.conftest import PROFILE, Company, ask, begin_request, work_off
from tests.edges import issue, set_quota
from tests.long.chaos.verdict import _traces


@pytest.fixture
def pair(
    new_company: Callable[[str], Company], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Company, Company]:
    """Two tenants with rows in every table and sealed memories."""
    master = base64.b64encode(secrets.token_bytes(32)).decode()
    monkeypatch.setenv("MEMBANK_MASTER_KEY", master)
    monkeypatch.setenv("MEMBANK_KEYRING", str(tmp_path / "keyring"))
    settings.cache_clear()
    companies = new_company("harbor"), new_company("northwind")
    for company in companies:
        alice = company.reader("alice", f"staff of {company.name}")
        issue(company.name, "alice")
        set_quota(company.tenant, Quota(documents=10))
        begin_request(alice)
        company.store("a", f"The badge of {company.name} is orange.\n\nThe door is blue.")
    work_off()
    for company in companies:
        company.store("late", "waits")
    return companies


def traces(superuser: psycopg.Connection, tenant: int) -> dict[str, int]:
    """Rows by table."""
    tables = superuser.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
        " AND a.attname = 'tenant_id'"
    ).fetchall()
    found = {}
    for (table,) in tables:
        row = superuser.execute(f"SELECT count(*) FROM {table} WHERE tenant_id = %s", [tenant])
        [[found[table]]] = row.fetchall()
    return {table: count for table, count in found.items() if count}


def test_nothing_is_left_and_an_old_copy_does_not_open(
    pair: tuple[Company, Company], superuser: psycopg.Connection, tmp_path: Path
) -> None:
    ours, theirs = pair
    before = traces(superuser, ours.tenant)
    backup = superuser.execute(
        "SELECT b.chunk_id, b.payload, k.version, k.id FROM memory_blob b JOIN tenant_key k"
        " ON k.tenant_id = b.tenant_id AND k.version = b.key_version WHERE b.tenant_id = %s",
        [ours.tenant],
    ).fetchall()
    chunk, payload, version, name = backup[0]
    key = KeyName(ours.tenant, version, name)
    assert unseal(key, Place(chunk, PROFILE), payload).startswith(b"kv of")

    receipt = erase(ours.name)

    assert {t: n for t, n in receipt["rows"].items() if n} == before
    assert (receipt["keys_destroyed"], receipt["keys_missing"]) == (1, [])
    assert receipt["blob_bytes"] == sum(len(row[1]) for row in backup)
    assert traces(superuser, ours.tenant) == {"audit_event": 1}
    [[action, detail]] = superuser.execute(
        "SELECT action, detail FROM audit_event WHERE tenant_id = %s", [ours.tenant]
    )
    assert (action, detail) == ("erase", receipt)
    words = ["staff of harbor", "badge of harbor"]
    assert list(_traces(superuser, words, tmp_path)) == []
    with pytest.raises(VaultError, match=r"data key .* is not in"):
        unseal(key, Place(chunk, PROFILE), payload)
    assert len(list(keyring.folder().glob("*"))) == 1

    reader = theirs.reader("alice")
    chunks = [c for (c,) in ask(reader, "SELECT chunk_id FROM memory_key")]
    assert len(load_blobs(reader, PROFILE, chunks)) == 2
    with pytest.raises(NotFoundError):
        erase(ours.name)


def test_an_erasure_that_fails_midway_has_destroyed_the_keys_and_can_be_done_again(
    pair: tuple[Company, Company], superuser: psycopg.Connection
) -> None:
    ours, _ = pair
    superuser.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$;"
        "CREATE TRIGGER no BEFORE DELETE ON tenant EXECUTE FUNCTION no()"
    )
    try:
        with pytest.raises(DBAPIError, match="the disk is full"):
            erase(ours.name)
    finally:
        superuser.execute("DROP TRIGGER no ON tenant; DROP FUNCTION no()")
    assert traces(superuser, ours.tenant)["memory_blob"] == 2
    with pytest.raises(VaultError, match=r"data key .* is not in"):
        load_blobs(
            ours.reader("alice"),
            PROFILE,
            [c for (c,) in ask(ours.reader("alice"), "SELECT chunk_id FROM memory_key")],
        )
    receipt = erase(ours.name)
    assert (receipt["keys_destroyed"], len(receipt["keys_missing"])) == (0, 1)
    assert traces(superuser, ours.tenant) == {"audit_event": 1}


def test_without_the_keyring_nothing_is_erased(
    pair: tuple[Company, Company], superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair
    before = traces(superuser, ours.tenant)
    monkeypatch.setenv("MEMBANK_KEYRING", "/no/such/folder")
    settings.cache_clear()
    with pytest.raises(VaultError, match="the keyring /no/such/folder does not exist"):
        erase(ours.name)
    assert traces(superuser, ours.tenant) == before


def test_the_command_asks_for_yes_and_prints_the_receipt(pair: tuple[Company, Company]) -> None:
    ours, theirs = pair
    result = CliRunner().invoke(membank, ["tenant", "erase", ours.name])
    assert isinstance(result.exception, UsageError)
    assert "--yes" in str(result.exception)
    result = CliRunner().invoke(membank, ["tenant", "erase", ours.name, "--yes", "--json"])
    receipt = json.loads(result.stdout)
    assert (receipt["tenant"], receipt["rows"]["document"]) == (ours.name, 2)
    result = CliRunner().invoke(membank, ["audit", "export", "--tenant", ours.name, "--json"])
    # Receipts stay, those of other tests too.
    assert json.loads(result.stdout.splitlines()[-1])["detail"] == receipt
    result = CliRunner().invoke(membank, ["tenant", "erase", theirs.name, "--yes"])
    assert "1 keys destroyed" in result.stdout
    assert "2  document\n" in result.stdout
