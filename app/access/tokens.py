"""Tokens of an identity provider (OpenID Connect): verified with its public keys."""

import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from jwt import PyJWK

from app.errors import UnauthorizedError, UnavailableError, UsageError
from app.settings import settings

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Signatures that a public key verifies. With a shared secret who verifies could also sign."""

_SCOPE = "membank:"
_LEEWAY = 30.0
_FRESH, _USABLE, _PAUSE = 3600.0, 86_400.0, 60.0
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
        key = key_set(issuer, chosen.oidc_keys).find(kid)
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
        raise UnauthorizedError("the token does not count yet: compare the clocks") from None
    except (jwt.InvalidAudienceError, jwt.InvalidIssuerError, jwt.MissingRequiredClaimError) as e:
        raise UnauthorizedError(f"the token is not for this service: {_reason(e)}") from None
    except jwt.PyJWTError:
        raise UnauthorizedError("the token is not valid: get a new one from its issuer") from None
    return Claims(
        _name(claims, chosen.oidc_tenant_claim),
        _name(claims, chosen.oidc_principal_claim),
        _scopes(claims.get("scope", claims.get("scp"))),
    )


class KeySet:
    """An issuer's public keys, fetched when they are old or a token names one that is not known.

    However many tokens name unknown keys, `fetch` is called at most once a minute. While it fails,
    the keys that are there are used for a day.
    """

    def __init__(
        self, fetch: Callable[[], list[PyJWK]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch, self._clock = fetch, clock
        self._lock = threading.Lock()
        self._keys: list[PyJWK] = []
        self._fetched = self._tried = -math.inf

    def find(self, kid: object) -> PyJWK | None:
        """The key of that id; without an id the only key there is.

        Raises UnavailableError where no key could be fetched, now or within a day.
        """
        now = self._clock()
        found = self._known(kid)
        if (found is None or now - self._fetched > _FRESH) and now - self._tried > _PAUSE:
            self._renew(now)
            found = self._known(kid)
        if self._clock() - self._fetched > _USABLE:
            raise UnavailableError("the issuer's keys cannot be had: see MEMBANK_OIDC_KEYS")
        return found

    def _known(self, kid: object) -> PyJWK | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == kid), None)

    def _renew(self, now: float) -> None:
        with self._lock:
            if now - self._tried <= _PAUSE:  # another thread was quicker
                return
            try:
                self._keys = self._fetch()
                self._fetched = self._clock()
            except UnavailableError:
                if self._clock() - self._fetched > _USABLE:
                    raise
            finally:
                self._tried = self._clock()


@lru_cache(maxsize=4)
def key_set(issuer: str, source: str | None) -> KeySet:
    """The keys of an issuer, from a file, an address, or what its discovery document names."""
    return KeySet(lambda: _public_keys(_document(source or _discovered(issuer))))


def _discovered(issuer: str) -> str:
    place = issuer.rstrip("/") + "/.well-known/openid-configuration"
    found = _document(place)
    if found.get("issuer") != issuer or not isinstance(found.get("jwks_uri"), str):
        raise UnavailableError(
            f"{place} does not describe MEMBANK_OIDC_ISSUER={issuer}: correct it,"
            " or set MEMBANK_OIDC_KEYS"
        )
    return str(found["jwks_uri"])


def _public_keys(document: dict[str, Any]) -> list[PyJWK]:
    """Those keys of a JWK set that tokens may be signed with here; others are left out."""
    found, listed = [], document.get("keys")
    for each in listed if isinstance(listed, list) else ():
        try:
            key = PyJWK(each)
        except (jwt.PyJWTError, AttributeError):
            continue
        private = "d" in each
        if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig") and not private:
            found.append(key)
    return found


def _document(source: str) -> dict[str, Any]:
    """A JSON object from a file or an address. Raises UnavailableError that names the place."""
    try:
        if "://" not in source:
            text = Path(source).expanduser().read_bytes()
        else:
            _require_private(source)
            with _OPENER.open(source, timeout=_TIMEOUT) as answer:
                text = answer.read(_MOST_BYTES)
        found = json.loads(text)
    except (OSError, ValueError) as error:  # OSError: also all that urllib raises
        raise UnavailableError(
            f"keys of tokens cannot be read from {source}: {error}; see MEMBANK_OIDC_KEYS"
        ) from None
    if not isinstance(found, dict):
        raise UnavailableError(f"{source} holds no JSON object: see MEMBANK_OIDC_KEYS")
    return found


def _require_private(address: str) -> None:
    """Whoever can change the answer on its way could sign tokens for anybody."""
    parts = urlsplit(address)
    here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise ValueError("only https is trusted")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """An answer that leads elsewhere is an error, as any other that is not the document."""


_OPENER = urllib.request.build_opener(_NoRedirect)


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
