"""Keys: shown once, kept as hashes, looked up by strangers who learn nothing else."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from sqlalchemy.exc import ProgrammingError
from typer.testing import CliRunner

from app.access.identity import identify
from app.cli import app as membank
from app.db.session import Asker
from app.errors import ForbiddenError, NotFoundError, UnauthorizedError, UsageError
from app.settings import settings
from tests import edges
from tests.conftest import Company, administer, ask, change
from tests.edges import issue


@pytest.fixture
def alice(company: Company) -> Asker:
    return company.reader("alice")


@pytest.fixture
def token(company: Company, alice: Asker) -> str:
    return issue(company.name, "alice", ["read", "write"]).token


def refusal(bearer: str) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        identify(bearer)
    return str(caught.value)


def with_another_secret(token: str) -> str:
    return token[:-43] + "A" * 43


def run(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(membank, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, object] = json.loads(result.stdout)
    return found


class TestWhoAsks:
    def test_a_key_stands_for_its_principal_with_its_scopes(
        self, token: str, company: Company, alice: Asker
    ) -> None:
        who = identify(token)
        assert (who.tenant, who.principal, who.asker) == (company.name, "alice", alice)
        assert who.scopes == {"read", "write"}
        assert who.may("write") == alice
        with pytest.raises(ForbiddenError, match="scope admin"):
            who.may("admin")

    def test_a_secret_has_256_random_bits_and_is_kept_nowhere(
        self, token: str, superuser: psycopg.Connection
    ) -> None:
        secret = token[-43:]
        [[row, stored]] = superuser.execute("SELECT to_jsonb(k)::text, hash FROM api_key k")
        assert re.fullmatch(r"mb_\d+-\d+_[A-Za-z0-9_-]{43}", token)
        assert secret not in row
        assert stored == hashlib.sha256(secret.encode()).digest()

    def test_no_two_keys_are_alike(self, company: Company, alice: Asker) -> None:
        made = [issue(company.name, "alice") for _ in range(5)]
        assert len({each.token[-43:] for each in made}) == len({each.id for each in made}) == 5

    @pytest.mark.parametrize("bearer", ["", "x", "mb_", "mb_1-1_short", "Bearer x", "m" * 9000])
    def test_what_is_no_key_is_refused(self, database: str, bearer: str) -> None:
        assert bearer not in refusal(bearer) or len(bearer) < 2

    def test_a_deleted_principals_key_is_unknown(self, token: str) -> None:
        administer("DELETE FROM principal WHERE name = 'alice'")
        assert "not valid" in refusal(token)

    @pytest.mark.parametrize("days", [0, -1, 3651])
    def test_days_out_of_range_are_refused(self, company: Company, alice: Asker, days: int) -> None:
        with pytest.raises(UsageError, match="3650"):
            issue(company.name, "alice", days=days)

    @pytest.mark.parametrize("scopes", [[], ["own"], ["read", ""]])
    def test_unknown_scopes_are_refused(
        self, company: Company, alice: Asker, scopes: list[str]
    ) -> None:
        with pytest.raises(UsageError, match="read, write, admin"):
            issue(company.name, "alice", scopes)


class TestStrangers:
    def test_learn_not_whether_a_key_is_unknown_expired_or_revoked(
        self, token: str, company: Company
    ) -> None:
        wrong = with_another_secret(token)
        first = refusal(wrong)
        assert refusal(wrong.replace("mb_", "mb_9")) == first
        administer("UPDATE api_key SET expires_at = now()")
        assert refusal(wrong) == first
        administer("UPDATE api_key SET revoked_at = now()")
        assert refusal(wrong) == first
        administer("DELETE FROM api_key")
        assert refusal(wrong) == refusal(token) == first

    def test_who_has_the_secret_is_told_that_it_expired(self, token: str) -> None:
        administer("UPDATE api_key SET expires_at = '2020-05-17'")
        assert "expired on 2020-05-17" in refusal(token)

    def test_who_has_the_secret_is_told_that_it_was_revoked(
        self, token: str, company: Company
    ) -> None:
        edges.revoke_key(company.name, token[3:-44])
        assert "revoked" in refusal(token)

    def test_a_secret_opens_no_key_but_its_own(
        self, token: str, company: Company, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("northwind")
        other.reader("alice")
        for foreign in (issue("northwind", "alice"), issue(company.name, "alice")):
            assert "not valid" in refusal(f"mb_{foreign.id}_{token[-43:]}")

    @pytest.mark.parametrize("role", ["app", "worker"])
    def test_no_service_reads_the_table(self, token: str, company: Company, role: str) -> None:
        for statement in ("SELECT hash FROM api_key", "SELECT id FROM api_key"):
            with pytest.raises(ProgrammingError, match="permission denied"):
                ask(Asker(role, company.tenant), statement)  # type: ignore[arg-type]

    def test_the_function_gives_nothing_without_the_hash(
        self, token: str, company: Company
    ) -> None:
        [[number]] = ask(Asker("admin"), "SELECT id FROM api_key")
        call = "SELECT * FROM find_key(:tenant, :key, :hash)"
        for shown in (b"", b"x" * 32, None):
            values = {"tenant": company.tenant, "key": number, "hash": shown}
            assert ask(Asker("app", company.tenant), call, **values) == []
        with pytest.raises(ProgrammingError, match="permission denied"):
            ask(Asker("worker"), call, tenant=company.tenant, key=number, hash=b"")

    def test_the_function_leaves_nothing_open_behind_it(self, token: str, company: Company) -> None:
        shown = hashlib.sha256(token[-43:].encode()).digest()
        [[number]] = ask(Asker("admin"), "SELECT id FROM api_key")
        rows = ask(
            Asker("owner"),
            "SELECT f.fault, current_setting('membank.shown_key', true) FROM"
            " find_key(:tenant, :key, :hash) f",
            tenant=company.tenant,
            key=number,
            hash=shown,
        )
        assert rows == [(None, "")]
        assert ask(Asker("owner"), "SELECT count(*) FROM api_key") == [(0,)]


class TestLastUse:
    USED = "SELECT last_used_at, xmin::text FROM api_key"

    def test_is_noted_at_most_once_a_minute(
        self, token: str, superuser: psycopg.Connection
    ) -> None:
        assert superuser.execute(self.USED).fetchone()[0] is None  # type: ignore[index]
        identify(token)
        first = superuser.execute(self.USED).fetchone()
        identify(token)
        assert superuser.execute(self.USED).fetchone() == first
        superuser.execute("UPDATE api_key SET last_used_at = now() - interval '61 seconds'")
        identify(token)
        [fresh] = superuser.execute("SELECT last_used_at > now() - interval '9 s' FROM api_key")
        assert fresh == (True,)

    def test_of_a_wrong_secret_is_not_noted(
        self, token: str, superuser: psycopg.Connection
    ) -> None:
        refusal(with_another_secret(token))
        assert superuser.execute(self.USED).fetchone()[0] is None  # type: ignore[index]

    def test_waits_for_nobody_who_holds_the_row(self, token: str, database: str) -> None:
        with psycopg.connect(database) as other:
            other.execute("UPDATE api_key SET name = 'held'")
            assert identify(token).principal == "alice"


class TestSecrecy:
    def test_no_token_is_in_a_message_a_log_or_a_repr(
        self, token: str, company: Company, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        made = issue(company.name, "alice")
        administer("UPDATE api_key SET expires_at = now()")
        told = [repr(made), str(made), refusal(made.token), refusal(with_another_secret(token))]
        with pytest.raises(NotFoundError) as caught:
            edges.revoke_key(company.name, token)
        told += [str(caught.value), caplog.text, refusal(token + "x"), refusal("ey" + token)]
        for secret in (made.token[-43:], token[-43:], "A" * 43):
            assert not [line for line in told if secret in line]

    def test_an_error_of_the_database_does_not_show_the_hash(
        self, token: str, own_database: str
    ) -> None:
        with psycopg.connect(own_database, autocommit=True) as connection:
            connection.execute("DROP FUNCTION find_key")
        with pytest.raises(ProgrammingError) as caught:
            identify(token)
        digest = hashlib.sha256(token[-43:].encode())
        assert digest.hexdigest()[:12] not in str(caught.value)
        assert str(digest.digest())[2:12] not in str(caught.value)
        assert token[-43:] not in str(caught.value)


class TestCommands:
    def test_issue_list_and_revoke(self, company: Company, alice: Asker) -> None:
        where = ("--tenant", company.name)
        made = run("key", "issue", *where, "--principal", "alice", "--scope", "read,admin",
                   "--expires", "7", "--name", "laptop")  # fmt: skip
        assert set(made) == {"token", "id", "expires"}
        token = str(made["token"])
        assert identify(token).scopes == {"read", "admin"}
        [[days]] = ask(
            Asker("admin"), "SELECT round(extract(epoch FROM expires_at - now()) / 86400)::int"
            " FROM api_key"
        )  # fmt: skip
        assert days == 7
        [row] = run("key", "list", *where)["keys"]  # type: ignore[misc]
        assert (row["id"], row["state"], row["name"]) == (made["id"], "good", "laptop")
        assert row["last_used"] is not None
        shown = CliRunner().invoke(membank, ["key", "list", *where]).stdout
        assert "laptop" in shown
        assert token[-43:] not in shown + json.dumps(row)
        run("key", "revoke", str(made["id"]), *where)
        assert "revoked" in refusal(token)
        [row] = run("key", "list", *where)["keys"]  # type: ignore[misc]
        assert row["state"] == "revoked"

    def test_a_key_of_another_tenant_is_not_revoked(
        self, token: str, new_company: Callable[[str], Company]
    ) -> None:
        new_company("northwind")
        with pytest.raises(NotFoundError):
            edges.revoke_key("northwind", token[3:-44])
        assert identify(token).principal == "alice"

    def test_keys_of_another_tenant_are_not_listed(
        self, token: str, new_company: Callable[[str], Company]
    ) -> None:
        new_company("northwind")
        assert edges.key_list("northwind") == []


class TestTokens:
    """JWTs; what makes one good is tested in tests/unit/test_jwt.py."""

    @pytest.fixture
    def signed(
        self, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., str]:
        key = Ed25519PrivateKey.generate()
        public = json.loads(OKPAlgorithm.to_jwk(key.public_key()))
        (tmp_path / "keys.json").write_text(json.dumps({"keys": [public]}))
        monkeypatch.setenv("MEMBANK_OIDC_ISSUER", "https://id.example")
        monkeypatch.setenv("MEMBANK_OIDC_AUDIENCE", "membank")
        monkeypatch.setenv("MEMBANK_OIDC_KEYS", str(tmp_path / "keys.json"))
        settings.cache_clear()

        def sign(**claims: object) -> str:
            whole = {"iss": "https://id.example", "aud": "membank", "exp": 9_999_999_999} | claims
            return jwt.encode(whole, key, "EdDSA")

        return sign

    def test_a_token_stands_for_the_principal_that_it_names(
        self, signed: Callable[..., str], company: Company, alice: Asker
    ) -> None:
        who = identify(signed(tenant=company.name, sub="alice", scope="membank:write openid"))
        assert (who.asker, who.scopes) == (alice, {"write"})

    @pytest.mark.parametrize(("tenant", "sub"), [("harbor", "bob"), ("nobody", "alice")])
    def test_a_token_of_somebody_unknown_is_refused(
        self, signed: Callable[..., str], company: Company, alice: Asker, tenant: str, sub: str
    ) -> None:
        with pytest.raises(ForbiddenError, match="not known here"):
            identify(signed(tenant=tenant, sub=sub))

    def test_a_principal_of_another_tenant_is_not_meant(
        self,
        signed: Callable[..., str],
        company: Company,
        alice: Asker,
        new_company: Callable[[str], Company],
    ) -> None:
        theirs = new_company("northwind").reader("alice")
        assert identify(signed(tenant="northwind", sub="alice")).asker == theirs != alice


def test_a_key_is_not_lost_by_a_change_of_its_principals_name(token: str) -> None:
    change(Asker("admin"), "UPDATE principal SET name = 'alicia' WHERE name = 'alice'")
    assert identify(token).principal == "alicia"
