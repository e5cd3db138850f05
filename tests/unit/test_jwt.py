"""Tokens: signed by the issuer, for this service, now. Nothing else, and no flood of fetches."""

import base64
import contextlib
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWKSet
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.access import tokens
from app.access.tokens import IssuerKeys, issuer_keys, verify
from app.errors import UnauthorizedError, UnavailableError, UsageError
from app.settings import settings

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, kid: str, **more: object) -> dict[str, Any]:
    """The public half as a JWK."""
    for kind, form in (
        (rsa.RSAPrivateKey, RSAAlgorithm),
        (ec.EllipticCurvePrivateKey, ECAlgorithm),
        (ed25519.Ed25519PrivateKey, OKPAlgorithm),
    ):
        if isinstance(key, kind):
            return json.loads(form.to_jwk(key.public_key())) | {"kid": kid} | more  # type: ignore[attr-defined, no-any-return]
    raise TypeError(key)


@dataclass
class Issuer:
    """An identity provider on this machine: its documents by path, and what was asked for."""

    url: str = ""
    documents: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    pause: float = 0.0

    def publish(self, *keys: dict[str, Any]) -> None:
        self.documents["/keys"] = {"keys": list(keys)}

    def claims(self, **more: object) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": self.url, "aud": "membank", "exp": now + 300, "nbf": now - 1}
        return usual | {"tenant": "harbor", "sub": "alice"} | more


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    found = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            document = found.documents.get(self.path)
            if isinstance(document, str):
                self.send_response(302)
                self.send_header("Location", document)
                self.end_headers()
                return
            self.send_response(404 if document is None else 200)
            self.end_headers()
            body = json.dumps(document).encode()
            if not found.pause:
                self.wfile.write(body)
                return
            with contextlib.suppress(OSError):  # the other side gives up
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(found.pause)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    found.documents["/.well-known/openid-configuration"] = {
        "issuer": found.url,
        "jwks_uri": f"{found.url}/keys",
    }
    found.publish(public(RSA, "rsa"), public(EC, "ec"), public(ED, "ed"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MEMBANK_OIDC_ISSUER", found.url)
    monkeypatch.setenv("MEMBANK_OIDC_AUDIENCE", "membank")
    settings.cache_clear()
    issuer_keys.cache_clear()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()
    settings.cache_clear()
    issuer_keys.cache_clear()


def setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MEMBANK_OIDC_{name}", value)
    settings.cache_clear()


def sign(claims: dict[str, Any], key: Any = ED, alg: str = "EdDSA", kid: str | None = "ed") -> str:
    return jwt.encode(claims, key, alg, headers={"kid": kid} if kid else None)


def refused(token: str) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        verify(token)
    assert token not in str(caught.value)
    return str(caught.value)


class TestGood:
    @pytest.mark.parametrize(
        ("key", "alg", "kid"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")]
    )
    def test_a_token_of_each_kind_of_key(
        self, issuer: Issuer, key: Any, alg: str, kid: str
    ) -> None:
        claims = verify(sign(issuer.claims(), key, alg, kid))
        assert (claims.tenant, claims.principal) == ("harbor", "alice")

    def test_keys_from_a_file(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "keys.json").write_text(json.dumps({"keys": [public(ED, "ed")]}))
        setting(monkeypatch, "KEYS", str(tmp_path / "keys.json"))
        assert verify(sign(issuer.claims())).principal == "alice"
        assert issuer.asked == []

    def test_without_a_kid_the_only_key(self, issuer: Issuer) -> None:
        issuer.publish(public(ED, "ed"))
        assert verify(sign(issuer.claims(), kid=None)).principal == "alice"

    def test_without_a_kid_none_of_several(self, issuer: Issuer) -> None:
        refused(sign(issuer.claims(), kid=None))

    def test_claims_by_other_names(self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
        setting(monkeypatch, "TENANT_CLAIM", "org")
        setting(monkeypatch, "PRINCIPAL_CLAIM", "email")
        claims = verify(sign(issuer.claims(org="northwind", email="a@b.c")))
        assert (claims.tenant, claims.principal) == ("northwind", "a@b.c")

    @pytest.mark.parametrize(
        ("stated", "scopes"),
        [
            ({}, {"read"}),
            ({"scope": "openid admin write"}, {"read"}),
            ({"scope": "membank:write membank:read x"}, {"write", "read"}),
            ({"scp": ["membank:admin"]}, {"admin"}),
            ({"scope": "membank:everything"}, set()),
        ],
    )
    def test_scopes(self, issuer: Issuer, stated: dict[str, Any], scopes: set[str]) -> None:
        assert verify(sign(issuer.claims(**stated))).scopes == scopes

    def test_nbf_may_be_left_out_as_many_issuers_do(self, issuer: Issuer) -> None:
        claims = issuer.claims()
        del claims["nbf"]
        assert verify(sign(claims)).principal == "alice"


class TestRefused:
    @pytest.mark.parametrize("claim", ["exp", "iss", "aud", "tenant", "sub"])
    def test_without_a_claim_that_is_needed(self, issuer: Issuer, claim: str) -> None:
        claims = issuer.claims()
        del claims[claim]
        assert claim in refused(sign(claims))

    @pytest.mark.parametrize(
        ("claim", "value", "told"),
        [
            ("exp", 1_000_000_000, "expired"),
            ("nbf", 9_999_999_999, "not valid yet"),
            ("iss", "https://else.example", "another issuer"),
            ("aud", "another", "another audience"),
            ("tenant", "", "tenant"),
            ("tenant", ["harbor"], "tenant"),
        ],
    )
    def test_with_a_claim_that_is_wrong(
        self, issuer: Issuer, claim: str, value: object, told: str
    ) -> None:
        assert told in refused(sign(issuer.claims(**{claim: value})))

    def test_signed_by_another_key_under_a_known_id(self, issuer: Issuer) -> None:
        refused(sign(issuer.claims(), OTHER))

    def test_not_signed(self, issuer: Issuer) -> None:
        for kid in ("rsa", "ed", None):
            refused(sign(issuer.claims(), None, "none", kid))

    def test_signed_with_the_public_key_as_a_shared_secret(self, issuer: Issuer) -> None:
        pem = RSA.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        der = json.dumps(public(RSA, "rsa")).encode()
        for secret in (pem, der):
            parts = [{"alg": "HS256", "kid": "rsa", "typ": "JWT"}, issuer.claims()]
            body = b".".join(plain(json.dumps(part).encode()) for part in parts)
            signature = hmac.new(secret, body, hashlib.sha256).digest()
            refused((body + b"." + plain(signature)).decode())

    def test_signed_with_a_shared_secret_that_the_issuer_lists(self, issuer: Issuer) -> None:
        secret = b"s" * 32
        issuer.publish({"kty": "oct", "kid": "ed", "k": plain(secret).decode()})
        refused(sign(issuer.claims(), secret, "HS256"))

    @pytest.mark.parametrize(
        ("alg", "more"), [("RS512", {}), ("PS256", {"alg": "PS256"}), ("RS256", {"use": "enc"})]
    )
    def test_signed_in_another_way(self, issuer: Issuer, alg: str, more: dict[str, Any]) -> None:
        issuer.publish(public(RSA, "rsa", **more))
        for kid in ("rsa", None):
            refused(sign(issuer.claims(), RSA, alg, kid))

    def test_signed_with_a_key_that_the_issuer_gave_away(self, issuer: Issuer) -> None:
        issuer.publish(json.loads(RSAAlgorithm.to_jwk(RSA)) | {"kid": "rsa"})
        refused(sign(issuer.claims(), RSA, "RS256", "rsa"))

    @pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
    def test_signed_with_a_key_that_is_too_short(self, issuer: Issuer) -> None:
        short = rsa.generate_private_key(65537, 1024)  # noqa: S505
        issuer.publish(public(short, "rsa"))
        refused(sign(issuer.claims(), short, "RS256", "rsa"))

    @pytest.mark.parametrize("token", ["x", "a.b.c", "..", "e30.e30.", "ey\x00"])
    def test_what_is_no_token(self, issuer: Issuer, token: str) -> None:
        with pytest.raises(UnauthorizedError):
            verify(token)

    def test_any_token_where_no_issuer_is_set_up(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MEMBANK_OIDC_ISSUER")
        settings.cache_clear()
        assert "no issuer" in refused(sign(issuer.claims()))

    def test_an_issuer_without_an_audience(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MEMBANK_OIDC_AUDIENCE")
        settings.cache_clear()
        with pytest.raises(UsageError, match="AUDIENCE"):
            verify(sign(issuer.claims()))


def plain(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class TestKeys:
    def test_are_fetched_once_for_many_tokens(self, issuer: Issuer) -> None:
        for _ in range(5):
            verify(sign(issuer.claims()))
        assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]

    def test_that_nobody_knows_make_no_further_fetches(self, issuer: Issuer) -> None:
        verify(sign(issuer.claims()))
        before = list(issuer.asked)
        for number in range(20):
            refused(sign(issuer.claims(), OTHER, kid=f"unknown {number}"))
        assert issuer.asked == before

    def test_of_a_set_that_describes_another_issuer_are_not_taken(self, issuer: Issuer) -> None:
        issuer.documents["/.well-known/openid-configuration"]["issuer"] = "https://else.example"
        with pytest.raises(UnavailableError, match="OIDC_ISSUER"):
            verify(sign(issuer.claims()))

    @pytest.mark.parametrize(
        "source", ["http://keys.example/keys", "ftp://127.0.0.1/keys", "file:///etc/passwd"]
    )
    def test_come_by_https_only(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        setting(monkeypatch, "KEYS", source)
        with pytest.raises(UnavailableError, match="only https"):
            verify(sign(issuer.claims()))

    def test_are_not_looked_for_where_an_answer_leads(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        issuer.documents["/elsewhere"] = f"{issuer.url}/keys"
        setting(monkeypatch, "KEYS", f"{issuer.url}/elsewhere")
        with pytest.raises(UnavailableError, match="302"):
            verify(sign(issuer.claims()))
        assert issuer.asked == ["/elsewhere"]

    def test_that_have_no_end_are_given_up(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        issuer.documents["/keys"] = {"keys": [], "more": "x" * 1_000_000}
        with pytest.raises(UnavailableError, match="1,000,000 bytes"):
            verify(sign(issuer.claims()))
        issuer.publish(public(ED, "ed"))
        issuer_keys.cache_clear()
        monkeypatch.setattr(tokens, "_TIMEOUT", 0.2)
        issuer.pause = 0.05  # each piece comes in time, the whole does not
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="seconds"):
            verify(sign(issuer.claims()))
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("document", [None, [], {"keys": 3}, {"keys": [3, {}, {"kty": "x"}]}])
    def test_that_cannot_be_read_are_no_keys(self, issuer: Issuer, document: Any) -> None:
        issuer.documents["/keys"] = document
        with pytest.raises((UnavailableError, UnauthorizedError)):
            verify(sign(issuer.claims()))


class TestRotation:
    @dataclass
    class Source:
        """Keys that change, or fail, and a clock that is set by hand."""

        kids: tuple[str, ...] = ("first",)
        fails: bool = False
        fetches: int = 0
        now: float = 0.0

        def monotonic(self) -> float:
            return self.now

        def fetch(self) -> PyJWKSet:
            self.fetches += 1
            if self.fails:
                raise UnavailableError("the issuer is away")
            return PyJWKSet([public(ED, kid) for kid in self.kids])

    @pytest.fixture
    def source(self, monkeypatch: pytest.MonkeyPatch) -> Source:
        source = self.Source()
        for module in (tokens, jwt.jwks_client, jwt.jwk_set_cache, jwt.api_jwk):
            monkeypatch.setattr(module, "time", source)
        return source

    @pytest.fixture
    def keys(self, source: Source) -> IssuerKeys:
        return IssuerKeys(source.fetch)

    def test_a_new_key_is_found_and_an_old_one_gone(self, source: Source, keys: IssuerKeys) -> None:
        assert keys.find("first") is not None
        source.kids, source.now = ("second",), 61.0
        assert keys.find("second") is not None
        assert keys.find("first") is None
        assert source.fetches == 2

    def test_a_withdrawn_key_is_gone_within_five_minutes(
        self, source: Source, keys: IssuerKeys
    ) -> None:
        keys.find("first")
        source.kids, source.now = ("second",), 301.0
        assert keys.find("first") is None

    def test_when_all_are_withdrawn_none_counts(self, source: Source, keys: IssuerKeys) -> None:
        keys.find("first")
        source.kids, source.now = (), 301.0
        for second in range(50):
            source.now = 301.0 + second
            assert keys.find("first") is None
        assert source.fetches == 2

    def test_strangers_cause_one_fetch_a_minute(self, source: Source, keys: IssuerKeys) -> None:
        for second in range(600):
            source.now = float(second)
            keys.find(f"unknown {second}")
        assert source.fetches == 10

    def test_strangers_at_the_same_time_cause_one_fetch(self, source: Source) -> None:
        begun, go = threading.Barrier(9), threading.Event()

        def slow() -> PyJWKSet:
            assert go.wait(60)
            return source.fetch()

        keys = IssuerKeys(slow)

        def look(number: int) -> object:
            begun.wait(60)
            return keys.find(f"unknown {number}")

        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(look, number) for number in range(8)]
            begun.wait(60)
            go.set()
            assert [each.result(60) for each in found] == [None] * 8
        assert source.fetches == 1

    def test_while_the_issuer_is_away_known_keys_count_for_a_day(
        self, source: Source, keys: IssuerKeys
    ) -> None:
        keys.find("first")
        source.fails = True
        for hours in (2, 12, 24):
            source.now = hours * 3600.0
            assert keys.find("first") is not None
        source.now = 24 * 3600.0 + 301
        with pytest.raises(UnavailableError):
            keys.find("first")
        source.now, source.fails = source.now + 61, False
        assert keys.find("first") is not None

    def test_an_issuer_that_was_never_reached_is_asked_once_a_minute(
        self, source: Source, keys: IssuerKeys
    ) -> None:
        source.fails = True
        for second in range(600):
            source.now = float(second)
            with pytest.raises(UnavailableError):
                keys.find("first" if second % 2 else None)
        assert source.fetches == 10

    def test_known_keys_do_not_wait_while_a_stranger_has_them_fetched(self, source: Source) -> None:
        begun, go = threading.Event(), threading.Event()

        def slow() -> PyJWKSet:
            if source.fetches:
                begun.set()
                assert go.wait(60)
            return source.fetch()

        keys = IssuerKeys(slow)
        keys.find("first")
        source.now = 61.0
        with ThreadPoolExecutor(2) as pool:
            stranger = pool.submit(keys.find, "unknown")
            assert begun.wait(60)
            known = pool.submit(keys.find, "first")
            try:
                assert known.result(10) is not None
            finally:
                go.set()
            assert stranger.result(60) is None


def test_only_public_keys_verify() -> None:
    assert set(tokens.ALGORITHMS) == {"RS256", "ES256", "EdDSA"}
