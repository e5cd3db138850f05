"""Tokens of an identity provider (OpenID Connect): verified with its public keys."""

import json
import math
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
from jwt import PyJWK, PyJWKClient, PyJWKClientError, PyJWKSet
from jwt.exceptions import PyJWKSetError

from app.errors import UnauthorizedError, UnavailableError, UsageError
from app.settings import settings

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Signatures that a public key verifies. With a shared secret who verifies could also sign."""

_SCOPE = "membank:"
_LEEWAY = 30.0
_FRESH, _USABLE, _PAUSE = 300.0, 86_400.0, 60.0
_TIMEOUT, _MOST_BYTES = 5.0, 1_000_000


@dataclass(frozen=True)
class Claims:
    """What a good token says: names of tenant and principal, and scopes of read, write, admin."""

    tenant: str
    principal: str
    scopes: frozenset[str]


def verify(token: str) -> Claims:
    """What a token says that the configured issuer signed for this service.

    Raises UnauthorizedError, UnavailableError where the issuer's keys cannot be had, and UsageError
    for settings that do not belong together.
    """
    chosen = settings()
    issuer, audience = chosen.oidc_issuer, chosen.oidc_audience
    if issuer is None:
        raise UnauthorizedError("this is no API key, and no issuer of tokens is set up here")
    if audience is None:
        raise UsageError("MEMBANK_OIDC_ISSUER is set: set MEMBANK_OIDC_AUDIENCE too")
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        key = issuer_keys(issuer, chosen.oidc_keys).find(kid)
        if key is None:
            raise UnauthorizedError("the token is signed with a key that its issuer does not name")
        claims = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=audience,
            issuer=issuer,
            leeway=_LEEWAY,
            options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
        )
    except jwt.ExpiredSignatureError:
        raise UnauthorizedError("the token has expired: get a new one from its issuer") from None
    except jwt.ImmatureSignatureError:
        raise UnauthorizedError("the token is not valid yet: compare the clocks") from None
    except (jwt.InvalidAudienceError, jwt.InvalidIssuerError, jwt.MissingRequiredClaimError) as e:
        raise UnauthorizedError(f"the token is not for this service: {_reason(e)}") from None
    except jwt.PyJWTError:
        raise UnauthorizedError("the token is not valid: get a new one from its issuer") from None
    return Claims(
        _name(claims, chosen.oidc_tenant_claim),
        _name(claims, chosen.oidc_principal_claim),
        _scopes(claims.get("scope", claims.get("scp"))),
    )


class IssuerKeys(PyJWKClient):
    """An issuer's public keys, fetched when they are 5 minutes old or a token names an unknown one.

    However many tokens name unknown keys, and whether or not the issuer answers, it is asked at
    most once a minute. While it cannot be reached, the keys that are there count for a day.
    """

    def __init__(self, fetch: Callable[[], PyJWKSet]) -> None:
        """`fetch`, in place of PyJWKClient's own way to an address: raises UnavailableError where
        the issuer cannot be reached, and PyJWKSetError where it names no key that counts here."""
        super().__init__("https:", lifespan=_FRESH, cooldown_duration=0)
        self._fetch, self._fetching = fetch, threading.Lock()
        self._kept: PyJWKSet | None = None
        self._kept_at = self._tried = -math.inf

    def find(self, kid: str | None) -> PyJWK | None:
        """The key of that id; without an id the only key there is.

        Raises UnavailableError where no key could be fetched, now or within a day.
        """
        try:
            if kid is None:
                keys = self.get_jwk_set().keys
                return keys[0] if len(keys) == 1 else None
            # A token of a known key does not wait while a stranger's has the keys fetched.
            known = self.jwk_set_cache and self.jwk_set_cache.get()
            return (known and self.match_kid(known.keys, kid)) or self.get_signing_key(kid)
        except PyJWKClientError:
            return None

    def fetch_data(self) -> PyJWKSet:
        """The keys as the issuer names them now, or did within a day."""
        with self._fetching:
            now = time.monotonic()
            if now - self._tried > _PAUSE:
                self._tried = now
                try:
                    self._kept, self._kept_at = self._fetch(), now
                except PyJWKSetError:
                    self._kept, self._kept_at = None, now
                except UnavailableError:
                    if now - self._kept_at > _USABLE:
                        raise
        if now - self._kept_at > _USABLE:
            raise UnavailableError("the issuer's keys are not available: see MEMBANK_OIDC_KEYS")
        if self._kept is None:
            raise PyJWKClientError("the issuer names no key that counts here")
        return self._kept


@lru_cache(maxsize=4)
def issuer_keys(issuer: str, source: str | None) -> IssuerKeys:
    """The keys of an issuer, from a file, an address, or what its discovery document names."""
    return IssuerKeys(lambda: _public_keys(_document(source or _discovered(issuer))))


def _discovered(issuer: str) -> str:
    place = issuer.rstrip("/") + "/.well-known/openid-configuration"
    found = _document(place)
    if found.get("issuer") != issuer or not isinstance(found.get("jwks_uri"), str):
        raise UnavailableError(
            f"{place} does not describe MEMBANK_OIDC_ISSUER={issuer}: correct it,"
            " or set MEMBANK_OIDC_KEYS"
        )
    return str(found["jwks_uri"])


def _public_keys(document: dict[str, Any]) -> PyJWKSet:
    """The keys of a JWK set that tokens may be signed with here; others are left out."""
    found = PyJWKSet(document.get("keys", []))
    found.keys = [
        key
        for key in found.keys
        if key.algorithm_name in ALGORITHMS
        and key.public_key_use in (None, "sig")
        and not hasattr(key.key, "private_bytes")
    ]
    if not found.keys:
        raise PyJWKSetError("none of the keys counts here")
    return found


def _document(source: str) -> dict[str, Any]:
    """A JSON object from a file or an address. Raises UnavailableError that names the place."""
    try:
        text = _downloaded(source) if "://" in source else Path(source).expanduser().read_bytes()
        found = json.loads(text)
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(
            f"keys of tokens cannot be read from {source}: {error}; see MEMBANK_OIDC_KEYS"
        ) from None
    if not isinstance(found, dict):
        raise UnavailableError(f"{source} holds no JSON object: see MEMBANK_OIDC_KEYS")
    return found


def _downloaded(address: str) -> bytes:
    """What is at an https address, bounded in bytes and seconds. Redirects are not followed."""
    _require_private(address)
    found, until = b"", time.monotonic() + _TIMEOUT
    trusted = ssl.create_default_context()  # this machine's authorities: issuers are often in-house
    plain = {"Accept-Encoding": "identity"}  # so that the bound on bytes is one on memory
    with httpx.stream("GET", address, headers=plain, timeout=_TIMEOUT, verify=trusted) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"it answers with status {answer.status_code}")
        for piece in answer.iter_raw():
            found += piece
            if len(found) > _MOST_BYTES or time.monotonic() > until:
                raise ValueError(f"more than {_MOST_BYTES:,} bytes or {_TIMEOUT:g} seconds")
    return found


def _require_private(address: str) -> None:
    """Whoever can change the answer on its way could sign tokens for anybody."""
    parts = urlsplit(address)
    here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise ValueError("only https is trusted")


def _name(claims: dict[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not value:
        raise UnauthorizedError(f"the token lacks the claim {claim!r}: its issuer must put it in")
    return value


def _scopes(stated: object) -> frozenset[str]:
    """Scopes that the token has under our name; one that says nothing of us may read."""
    words = (
        stated.split() if isinstance(stated, str) else stated if isinstance(stated, list) else []
    )
    ours = {
        word.removeprefix(_SCOPE)
        for word in words
        if isinstance(word, str) and word.startswith(_SCOPE)
    }
    return frozenset(ours & {"read", "write", "admin"}) if ours else frozenset({"read"})


def _reason(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it lacks {error.claim}"
    return "another audience" if isinstance(error, jwt.InvalidAudienceError) else "another issuer"
