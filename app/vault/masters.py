"""Master keys, which wrap the tenants' data keys, and the settings they come from.

A master is only ever given 32-byte data keys.
"""

import base64
import binascii
import hashlib
import importlib
import secrets
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import UsageError, VaultError
from app.settings import settings

KEY_BYTES, NONCE_BYTES = 32, 12


class Master(Protocol):
    """Wraps data keys. MEMBANK_MASTER_KMS names a function without arguments that returns one.

    Suits a client of a key management service, for which `binding` is the encryption context. A
    process unwraps each data key once.
    """

    @property
    def id(self) -> str:
        """Identifies this master; not secret, and stored beside each key that it wrapped."""

    def wrap(self, key: bytes, binding: bytes) -> bytes:
        """Encrypt a data key so that only this master, given the same binding, can decrypt it."""

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        """Decrypt a data key.

        Raises VaultError when another master wrapped it, or when its binding was another.
        """


@dataclass(frozen=True)
class Local:
    """A master key held by this process, for AES-256-GCM. `id` is the start of its SHA-256."""

    id: str
    _cipher: AESGCM = field(repr=False, compare=False)

    @classmethod
    def of(cls, text: str, setting: str) -> "Local":
        """Parse a key in base64. Raises UsageError, which names the setting but never the text."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise UsageError(
                f"{setting} is not {KEY_BYTES} bytes in base64: make a key with"
                f" `openssl rand -base64 {KEY_BYTES}`"
            )
        return cls(hashlib.sha256(b"membank master " + key).hexdigest()[:16], AESGCM(key))

    def wrap(self, key: bytes, binding: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, binding)

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        try:
            return self._cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], binding)
        except (InvalidTag, ValueError):
            raise VaultError(
                f"master key {self.id} does not open it: the file was changed,"
                " or belongs to another key"
            ) from None


def masters() -> tuple[Master, ...]:
    """The current master key, then the old one if it is set; () without encryption.

    Raises UsageError when a setting does not yield a key.
    """
    s = settings()
    key = None if s.master_key is None else s.master_key.get_secret_value()
    return _masters(key, s.master_key_file, s.master_kms, s.old_master_key_file)


@lru_cache
def _masters(
    key: str | None, file: Path | None, kms: str | None, old: Path | None
) -> tuple[Master, ...]:
    given: list[Master] = []
    if key is not None:
        given.append(Local.of(key, "MEMBANK_MASTER_KEY"))
    if file is not None:
        given.append(_of_file(file, "MEMBANK_MASTER_KEY_FILE"))
    if kms is not None:
        given.append(_of_kms(kms))
    if len(given) > 1:
        raise UsageError(
            "more than one master key is set: keep only one of MEMBANK_MASTER_KEY,"
            " MEMBANK_MASTER_KEY_FILE and MEMBANK_MASTER_KMS"
        )
    if given and old is not None:
        given.append(_of_file(old, "MEMBANK_OLD_MASTER_KEY_FILE"))
    return tuple(given)


def _of_file(file: Path, setting: str) -> Master:
    file = file.expanduser()
    try:
        mode, text = file.stat().st_mode, file.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{setting}={str(file)!r} cannot be read: {error}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(f"{setting}={str(file)!r} is open to other users: run chmod 600 {file}")
    return Local.of(text, setting)


def _of_kms(name: str) -> Master:
    module, _, function = name.partition(":")
    try:
        made: Master = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"MEMBANK_MASTER_KMS={name!r} does not load as MODULE:FUNCTION: {error}"
        ) from None
    return made
