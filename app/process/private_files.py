"""Local state files: always complete or absent, and readable only by their owner."""

import os
import threading
from pathlib import Path

from app.errors import UnavailableError


def private_folder(path: Path) -> Path:
    """Create the folder with mode 0700 unless it exists, and return it.

    Raises UnavailableError when this user cannot write there.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be created ({error.strerror}): set MEMBANK_HOME to a folder you own"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UnavailableError(
            f"{path} cannot be written to: run membank as the user who owns it,"
            " or set MEMBANK_HOME to a folder you own"
        )
    return path


def write_private(path: Path, content: str | bytes, lasting: bool = True) -> None:
    """Replace the file's content atomically, with mode 0600.

    With `lasting`, the content is on the disk when this returns; without it, other processes see
    it but a power cut may lose it. Raises OSError, leaving the file as it was.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
