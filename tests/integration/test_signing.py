"""The key that says who is asking: where it comes from, and how it is replaced."""

import hashlib
import hmac
import stat
from pathlib import Path

import psycopg
import pytest

from app.db import context_keys, schema
from app.db.addresses import database_url
from app.db.session import Asker
from app.db.signing import Key, context_key, key_file
from app.errors import MembankError, UsageError
from app.settings import settings
from tests.conftest import Company, ask
from tests.edges import find_bank

OTHER = "another key of the tests, worth as little"


@pytest.fixture
def database(own_database: str) -> str:
    return own_database


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a key, and no key in the environment."""
    monkeypatch.setenv("MEMBANK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEMBANK_CONTEXT_KEY")
    settings.cache_clear()
    return tmp_path / "home"


def documents(company: Company) -> int:
    return int(ask(Asker("worker", company.tenant), "SELECT count(*) FROM document")[0][0])


def use(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("MEMBANK_CONTEXT_KEY", secret)
    settings.cache_clear()


def test_the_signature_is_hmac_sha256() -> None:
    secret = "0123456789abcdef" * 4
    key = Key.of(secret)
    said = f"{key.id} 7 0 "
    block = hashlib.sha256(secret.encode()).digest()
    assert key.sign(7, None, 42) == said + hmac.digest(block, f"{said}42".encode(), "sha256").hex()


def test_a_key_shows_nothing_of_itself() -> None:
    key = Key.of(OTHER)
    assert repr(key) == f"Key(id='{key.id}')"
    with pytest.raises(UsageError, match="5 characters, 32 are needed") as caught:
        Key.of("short")
    assert "short" not in str(caught.value)


def test_settings_hide_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, OTHER)
    assert OTHER not in repr(settings())


def test_a_fresh_key_is_kept_in_the_home_for_its_owner_alone(company: Company, home: Path) -> None:
    with pytest.raises(MembankError, match=r"no key .*context\.key.*membank migrate"):
        documents(company)
    schema.provision()
    assert key_file() == home / "context.key"
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert documents(company) == 0
    schema.provision()
    schema.require_safe()


def test_an_unknown_key_is_named_with_the_way_out(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, OTHER)
    with pytest.raises(MembankError, match=r"does not know the key.*membank context rotate") as e:
        find_bank(company.name, "handbook")
    assert OTHER not in str(e.value)


def test_after_a_rotation_both_keys_count_until_the_old_ones_time_is_over(
    company: Company, home: Path, superuser: psycopg.Connection
) -> None:
    schema.provision()
    old = key_file().read_text()
    done = context_keys.rotate(hours=1)
    assert done.old_keys == 2  # that of the tests, too
    assert context_key().id == done.key
    assert key_file().read_text() != old
    assert documents(company) == 0
    new = key_file().read_text()
    key_file().write_text(old)
    assert documents(company) == 0
    superuser.execute(
        "UPDATE context_key SET valid_until = now() - interval '1 second'"
        " WHERE valid_until < 'infinity'"
    )
    with pytest.raises(MembankError, match="does not know the key"):
        documents(company)
    key_file().write_text(new)
    assert documents(company) == 0


def test_a_key_whose_time_is_over_does_not_come_back(
    company: Company, home: Path, superuser: psycopg.Connection
) -> None:
    schema.provision()
    old = key_file().read_text()
    context_keys.rotate(hours=0)
    context_keys.rotate(hours=0)
    assert superuser.execute(
        "SELECT count(*) FROM context_key WHERE inner_pad = '' AND outer_pad = ''"
    ).fetchone() == (2,)
    key_file().write_text(old)
    schema.provision()
    with pytest.raises(MembankError, match="does not know the key"):
        documents(company)


def test_a_key_of_the_environment_is_rotated_by_giving_a_new_one(
    company: Company, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEMBANK_HOME", str(tmp_path))
    settings.cache_clear()
    with pytest.raises(UsageError, match="knows already"):
        context_keys.rotate(hours=1)
    use(monkeypatch, OTHER)
    done = context_keys.rotate(hours=1)
    assert (done.key, done.old_keys) == (Key.of(OTHER).id, 1)
    assert documents(company) == 0
    assert not key_file().exists()


def test_a_database_of_an_older_version_is_named(
    company: Company, superuser: psycopg.Connection
) -> None:
    superuser.execute(
        "CREATE OR REPLACE FUNCTION current_tenant() RETURNS bigint"
        " LANGUAGE sql AS 'SELECT NULL::bigint'"
    )
    with pytest.raises(MembankError, match=r"older version.*membank migrate"):
        documents(company)


def test_a_temporary_table_does_not_stand_in_for_keys_or_groups(
    company: Company, superuser: psycopg.Connection
) -> None:
    """Roles may make none; if they could, it would help them nothing."""
    company.store("pay", "for hr", access=["group:hr"])
    company.reader("hana", "hr")
    ann = company.reader("ann")
    superuser.execute(f"GRANT TEMPORARY ON DATABASE {superuser.info.dbname} TO PUBLIC")
    url = database_url("app").set(drivername="postgresql").render_as_string(False)
    forged = Key.of(OTHER)
    with psycopg.connect(url, autocommit=True) as connection:

        def seen(key: Key) -> int:
            signed = key.sign(company.tenant, ann.principal, connection.info.backend_pid)
            with connection.transaction():
                connection.execute("SELECT set_config('membank.context', %s, true)", [signed])
                found = connection.execute("SELECT count(*) FROM public.document").fetchone()
            return found[0] if found else -1

        connection.execute("CREATE TEMPORARY TABLE group_member AS TABLE public.group_member")
        connection.execute(
            "INSERT INTO pg_temp.group_member SELECT %s, g, %s FROM generate_series(1, 1000) g",
            [company.tenant, ann.principal],
        )
        assert seen(context_key()) == 0
        connection.execute(
            "CREATE TEMPORARY TABLE context_key AS SELECT %s AS id, %s AS inner_pad,"
            " %s AS outer_pad, now() AS created_at, 'infinity'::timestamptz AS valid_until",
            [forged.id, forged.inner, forged.outer],
        )
        connection.execute("GRANT SELECT ON pg_temp.context_key TO PUBLIC")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not signed"):
            seen(forged)
