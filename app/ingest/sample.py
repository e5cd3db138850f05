"""Chunks of text from files, without a bank: what a codebook is fitted on."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import UsageError
from app.ingest.document import Failure
from app.ingest.read import read
from app.ingest.split import split


def chunks(
    paths: Sequence[Path], count: Callable[[str], int], most: int, max_bytes: int
) -> list[str]:
    """At most `most` chunks of the documents under `paths`, drawn from all of them.

    Raises UsageError that names the first file that cannot be read.
    """
    found: list[str] = []
    for document in read(paths, max_bytes):
        if isinstance(document, Failure):
            raise UsageError(f"{document.source}: {document.error}")
        found.extend(piece.text for piece in split(document.title, document.text, count))
    random.Random(0).shuffle(found)  # noqa: S311 (a sample, not a secret)
    return found[:most]
