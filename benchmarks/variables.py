"""Settings that apply to this process during a measurement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from app.settings import settings

WITHOUT_CACHE = {"MEMBANK_CACHE_BYTES": "0", "MEMBANK_CACHE_DISK_BYTES": "0"}
"""Turns the caches off, so that memories are loaded from where they are stored every time."""


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Override environment variables in this process; the stack's processes keep theirs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    settings.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        settings.cache_clear()
