"""The keyring: a folder with one file per data key, each wrapped by a master key.

Data keys are in no table, and so in no database backup. Deleting a key's file makes everything
sealed with it unreadable, wherever copies may be.
"""

import base64
import json
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import UsageError, VaultError
from app.process.private_files import private_folder, write_private
from app.settings import settings
from app.vault.masters import KEY_BYTES, Master, masters


@dataclass(frozen=True)
class KeyName:
    """Identifies a data key: one version of a tenant's key, as in the table tenant_key."""

    tenant: int
    version: int
    id: uuid.UUID

    @property
    def file(self) -> Path:
        return folder() / f"{self.id}.json"

    @property
    def binding(self) -> bytes:
        """What the wrapped key is bound to, so that it opens under no other name."""
        return f"membank key {self.id} {self.tenant} {self.version}".encode()


def folder() -> Path:
    return (settings().keyring or settings().home / "keyring").expanduser()


def make(name: KeyName) -> None:
    """Make a new key. Raises UsageError without a master key, UnavailableError without a folder."""
    _write(name, secrets.token_bytes(KEY_BYTES))


def cipher(name: KeyName) -> AESGCM:
    """The cipher of a key, which is read and unwrapped once per process.

    Raises VaultError when the key is missing or does not open.
    """
    return _cipher(name, folder(), masters())


def exists(name: KeyName) -> bool:
    return name.file.exists()


def destroy(name: KeyName) -> bool:
    """Delete a key for good and return whether it existed.

    Other processes that have read the key keep it in memory until they end.
    """
    found = exists(name)
    name.file.unlink(missing_ok=True)
    _cipher.cache_clear()
    return found


def rewrap() -> Iterator[KeyName]:
    """Wrap every key with the current master key, yielding each key that was not, once it is done.

    This can be interrupted at any point and run again. Raises VaultError, UsageError.
    """
    if not masters():
        raise UsageError("set the new master key first: MEMBANK_MASTER_KEY_FILE")
    for file in sorted(folder().glob("*.json")):
        kept = _read(file)
        if kept["master"] != masters()[0].id:
            name = KeyName(int(kept["tenant"]), int(kept["version"]), uuid.UUID(file.stem))
            _write(name, _unwrapped(name, masters()))
            yield name


@lru_cache(maxsize=4096)
def _cipher(name: KeyName, _folder: Path, given: tuple[Master, ...]) -> AESGCM:
    return AESGCM(_unwrapped(name, given))


def _unwrapped(name: KeyName, given: tuple[Master, ...]) -> bytes:
    what = f"data key {name.id} (tenant {name.tenant}, version {name.version})"
    if not given:
        raise VaultError(
            f"{what} is wrapped by a master key, but none is set: set MEMBANK_MASTER_KEY_FILE or"
            " MEMBANK_MASTER_KEY"
        )
    kept = _read(name.file)
    for master in given:
        if master.id == kept["master"]:
            try:
                return master.unwrap(base64.b64decode(kept["wrapped"]), name.binding)
            except VaultError as error:
                raise VaultError(f"{what}: {error}") from None
    raise VaultError(
        f"{what} is wrapped by master key {kept['master']}, but MEMBANK_MASTER_KEY_FILE or"
        f" MEMBANK_MASTER_KEY gives {given[0].id}: set the one that wrapped it, or name that one in"
        " MEMBANK_OLD_MASTER_KEY_FILE and run `membank vault rewrap`"
    )


def _read(file: Path) -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads(file.read_text("ascii"))
        return {part: str(kept[part]) for part in ("tenant", "version", "master", "wrapped")}
    except FileNotFoundError:
        raise VaultError(
            f"data key {file.stem} is not in {file.parent}: set MEMBANK_KEYRING to the folder that"
            " holds it. If it was destroyed, encode again what it sealed"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VaultError(f"data key {file} cannot be read: {error}") from None


def _write(name: KeyName, key: bytes) -> None:
    if not masters():
        raise UsageError("no master key is set: set MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY")
    master = masters()[0]
    kept = {
        "tenant": name.tenant,
        "version": name.version,
        "master": master.id,
        "wrapped": base64.b64encode(master.wrap(key, name.binding)).decode(),
    }
    private_folder(folder())
    write_private(name.file, json.dumps(kept) + "\n")
