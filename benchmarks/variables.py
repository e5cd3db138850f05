"""Settings of a measurement, for this process while it runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from app.settings import settings

WITHOUT_CACHE = {"MEMBANK_CACHE_BYTES": "0", "MEMBANK_CACHE_DISK_BYTES": "0"}
"""So that memories come from where they are kept each time."""


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """These in place of what the environment has. What the stack's processes have stays."""
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
