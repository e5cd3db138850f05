"""Requests that are done once: what was answered to one is kept for a day under the key it gave.

A response may show a secret, such as a new API key. It is kept under AES-256-GCM, under a key made
from the one that this process signs with, which the database does not have.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import text

from app.db.session import Asker, transaction
from app.db.signing import context_key
from app.errors import ConflictError, RepeatError

_NONCE = 12


@dataclass(frozen=True)
class Kept:
    """A response: its status and its body."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Once:
    """A request that has a key: to be done, then `keep` or `release`."""

    asker: Asker
    key: str
    began: datetime

    def keep(self, response: Kept) -> None:
        """Give this response to whoever sends the request again."""
        self._end(response.status, _sealed(self.asker, self.key, response.body))

    def release(self) -> None:
        """Let the key be free: nothing was done."""
        self._end(None, None)

    def _end(self, status: int | None, body: bytes | None) -> None:
        with transaction(self.asker) as connection:
            connection.execute(
                text("SELECT idempotency_end(:key, :began, :status, :body)"),
                {"key": self.key, "began": self.began, "status": status, "body": body},
            )


def begin(asker: Asker, key: str, request: bytes, seconds: float) -> Once | Kept:
    """Take a key for a request, or what was answered to it before.

    `request`: all that makes it this request; `seconds`: how long one may take at most. Raises
    RepeatError for a key that another request has, ConflictError while this one is being done.
    """
    digest = hashlib.sha256(request).digest()
    with transaction(asker) as connection:
        row = connection.execute(
            text("SELECT * FROM idempotency_begin(:key, :hash, :seconds)"),
            {"key": key, "hash": digest, "seconds": seconds},
        ).one_or_none()
    if row is not None and row.began is not None:
        return Once(asker, key, row.began)
    if row is not None and bytes(row.request_hash) != digest:
        raise RepeatError(
            "another request had this Idempotency-Key: give each request a key of its own"
        )
    if row is None or row.status is None:
        raise ConflictError("a request with this Idempotency-Key is being done: wait for its end")
    return Kept(row.status, _opened(asker, key, bytes(row.body)))


def expire(tenant: int) -> int:
    """Delete a tenant's keys that are older than a day; how many."""
    with transaction(Asker("worker", tenant)) as connection:
        return connection.execute(
            text(
                "DELETE FROM idempotency_key WHERE tenant_id = :tenant"
                " AND created_at < now() - interval '1 day'"
            ),
            {"tenant": tenant},
        ).rowcount


def _sealed(asker: Asker, key: str, body: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    return nonce + _cipher().encrypt(nonce, body, _place(asker, key))


def _opened(asker: Asker, key: str, sealed: bytes) -> bytes:
    try:
        return _cipher().decrypt(sealed[:_NONCE], sealed[_NONCE:], _place(asker, key))
    except InvalidTag:
        raise ConflictError(
            "what was answered to this request cannot be read since the context key was changed:"
            " see whether it was done, and send it with a new Idempotency-Key if not"
        ) from None


def _cipher() -> AESGCM:
    known = context_key()
    return AESGCM(hashlib.sha256(b"membank responses " + known.inner + known.outer).digest())


def _place(asker: Asker, key: str) -> bytes:
    return f"{asker.tenant} {asker.principal} {key}".encode()
