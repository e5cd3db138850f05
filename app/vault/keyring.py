"""The keyring: one file for each data key, wrapped by a master. In no table and no backup of one.

Whoever deletes a key's file makes unreadable all that it sealed, wherever a copy of that is.
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
    """Which data key: a version of a tenant's, as tenant_key has it."""

    tenant: int
    version: int
    id: uuid.UUID

    @property
    def file(self) -> Path:
        return folder() / f"{self.id}.json"

    @property
    def context(self) -> bytes:
        """What a wrapped key is bound to."""
        return f"membank key {self.id} {self.tenant} {self.version}".encode()


def folder() -> Path:
    return (settings().keyring or settings().home / "keyring").expanduser()


def make(name: KeyName) -> None:
    """A new key. Raises UsageError without a master, UnavailableError without a folder."""
    _write(name, secrets.token_bytes(KEY_BYTES))


def cipher(name: KeyName) -> AESGCM:
    """A key, ready for use; read and unwrapped once in a process.

    Raises VaultError when it is not there or does not open.
    """
    return _cipher(name, folder(), masters())


def exists(name: KeyName) -> bool:
    return name.file.exists()


def destroy(name: KeyName) -> bool:
    """Delete a key for good; whether it was there. Other processes forget it when they end."""
    found = exists(name)
    name.file.unlink(missing_ok=True)
    _cipher.cache_clear()
    return found


def rewrap() -> Iterator[KeyName]:
    """Wrap every key by the present master, one after the other; those that were not, as done.

    It can be interrupted at any point, and run again. Raises VaultError, UsageError.
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
            f"{what} is wrapped by a master key and none is set: set MEMBANK_MASTER_KEY_FILE or"
            " MEMBANK_MASTER_KEY"
        )
    kept = _read(name.file)
    for master in given:
        if master.id == kept["master"]:
            try:
                return master.unwrap(base64.b64decode(kept["wrapped"]), name.context)
            except VaultError as error:
                raise VaultError(f"{what}: {error}") from None
    raise VaultError(
        f"{what} is wrapped by master key {kept['master']}, and MEMBANK_MASTER_KEY_FILE or"
        f" MEMBANK_MASTER_KEY gives {given[0].id}: set the one it was wrapped by, or name it in"
        " MEMBANK_OLD_MASTER_KEY_FILE and run membank vault rewrap"
    )


def _read(file: Path) -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads(file.read_text("ascii"))
        return {part: str(kept[part]) for part in ("tenant", "version", "master", "wrapped")}
    except FileNotFoundError:
        raise VaultError(
            f"there is no data key {file.stem} in {file.parent}: set MEMBANK_KEYRING to the folder"
            " that has it. If it was destroyed, what it sealed must be encoded again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VaultError(f"data key {file} cannot be read: {error}") from None


def _write(name: KeyName, key: bytes) -> None:
    if not masters():
        raise UsageError("no master key is set: MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY")
    master = masters()[0]
    kept = {
        "tenant": name.tenant,
        "version": name.version,
        "master": master.id,
        "wrapped": base64.b64encode(master.wrap(key, name.context)).decode(),
    }
    private_folder(folder())
    write_private(name.file, json.dumps(kept) + "\n")
