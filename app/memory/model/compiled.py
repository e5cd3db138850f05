"""What is written in C: built once by the machine's compiler, for this processor, and kept."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.errors import ModelError

# Sums may be reordered, or nothing could be vectorised. Not -ffast-math: linked into a library it
# makes the whole process flush denormal numbers to zero.
_FLAGS = [
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
]


def library(source: Path, folder: Path) -> ctypes.CDLL:
    """A file of C, compiled; `folder` keeps what was built.

    Raises ModelError that says why it cannot be: no compiler, or a folder that takes nothing.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise ModelError(f"{source.name} needs a C compiler: install gcc")
    processor = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((line for line in lines if line.startswith("flags")), "")
    digest = hashlib.sha256(f"{processor}{_FLAGS}{source.read_text()}".encode()).hexdigest()
    built = folder / f"{source.stem}-{digest[:16]}.so"
    try:
        if not built.exists():
            _compile(compiler, source, built)
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise ModelError(f"{built} cannot be built or loaded: {error}") from error


def _compile(compiler: str, source: Path, built: Path) -> None:
    """Whole or not at all, whoever else builds it at the same time."""
    built.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix=".so", dir=built.parent)
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, str(source), "-o", partial, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ModelError(f"{source.name}: {compiler} failed: {done.stderr.strip()[:300]}")
        os.replace(partial, built)
    finally:
        Path(partial).unlink(missing_ok=True)
