"""The key that says who is asking, and its signature. Postgres checks it: signed_context()."""

import hashlib
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Self

from app.errors import MembankError, UsageError
from app.process.private_files import private_folder, write_private
from app.settings import settings

_BLOCK = 64  # bytes that SHA-256 takes at a time
_LEAST = 32  # characters of a secret


@dataclass(frozen=True)
class Key:
    """A secret as HMAC-SHA256 uses it, and a name that tells nothing of it."""

    id: str
    inner: bytes = field(repr=False)
    outer: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: str) -> Self:
        """Raises UsageError for a secret that could be guessed."""
        if len(secret) < _LEAST:
            raise UsageError(
                f"the context key has {len(secret)} characters, {_LEAST} are needed:"
                " make one with openssl rand -hex 32"
            )
        block = hashlib.sha256(secret.encode()).digest().ljust(_BLOCK, b"\0")
        return cls(
            hashlib.sha256(b"membank context key " + block).hexdigest()[:16],
            bytes(byte ^ 0x36 for byte in block),
            bytes(byte ^ 0x5C for byte in block),
        )

    def sign(self, tenant: int, principal: int | None, process: int) -> str:
        """The context of a tenant's principal for one process of the server."""
        said = f"{self.id} {tenant} {principal or 0} "
        within = hashlib.sha256(self.inner + f"{said}{process}".encode()).digest()
        return said + hashlib.sha256(self.outer + within).hexdigest()


def context_key() -> Key:
    """MEMBANK_CONTEXT_KEY, else what HOME/context.key holds at this moment.

    Raises MembankError that says where to take the key from when there is none.
    """
    if given := given_by_settings():
        return _parsed(given)
    path = key_file()
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise MembankError(
            f"there is no key to sign who is asking: {path} cannot be read ({error.strerror});"
            " give this process the MEMBANK_CONTEXT_KEY or the context.key of the others,"
            " or let membank migrate make one"
        ) from None


def ensure_context_key() -> Key:
    """The key of this process, made in HOME/context.key where there is none."""
    if not given_by_settings() and not key_file().exists():
        keep(new_secret())
    return context_key()


def new_secret() -> str:
    return secrets.token_hex(32)


def keep(secret: str) -> None:
    """Put it in HOME/context.key, readable only by its owner. Every process takes it from there."""
    private_folder(settings().home)
    write_private(key_file(), secret + "\n")


def key_file() -> Path:
    return settings().home / "context.key"


def given_by_settings() -> str:
    """The secret of MEMBANK_CONTEXT_KEY; empty where it is not set."""
    given = settings().context_key
    return "" if given is None else given.get_secret_value()


@lru_cache(maxsize=4)
def _parsed(secret: str) -> Key:
    return Key.of(secret)


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> Key:
    return Key.of(path.read_text(encoding="utf-8").strip())
