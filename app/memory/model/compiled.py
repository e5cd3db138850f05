"""Compiles C code once with this machine's compiler, for its processor, and keeps the result."""

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

# Sums may be reordered, because nothing could be vectorised otherwise. Not -ffast-math: linked into
# a library, it makes the whole process flush denormal numbers to zero.
_FLAGS = [
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
]


def library(source: Path, folder: Path) -> ctypes.CDLL:
    """Load a C file as a library, compiling it unless `folder` holds it already.

    Raises ModelError when there is no compiler, or when the file cannot be compiled or stored.
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
    """Build the library atomically, even if other processes build it at the same time."""
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
