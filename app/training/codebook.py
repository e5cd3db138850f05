"""`membank codebook`: fits one to the configured model and saves it where that finds it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import UsageError
from app.ingest.document import Failure
from app.ingest.read import read
from app.ingest.split import split
from app.memory.codec.transform import Transform
from app.process import console
from app.runtime.identity import codebooks, count_tokens
from app.runtime.models import models
from app.settings import settings
from app.training.calibrate import fit

REPEAT = "Repeat the text."


@dataclass(frozen=True)
class Made:
    """A codebook's file, its codec's name, and how many times smaller than bfloat16 it packs."""

    file: Path
    codec: str
    ratio: float


def make(paths: Sequence[Path], ratio: float, most: int, out: Path | None) -> Made:
    """Fit a codebook on at most `most` chunks of the text under `paths`.

    Raises UsageError when a text cannot be read or the codebook's file exists already, and
    ProfileError when there is too little text.
    """
    m = models()
    file = out or codebooks() / f"{m.profile.model[:16]}.safetensors"
    if file.suffix != ".safetensors":
        raise UsageError(f"{file}: the name of a codebook must end in .safetensors")
    if file.exists():
        raise UsageError(f"{file} exists and banks may need it: move it away, or give --out")
    texts = chunks(paths, count_tokens, most, settings().max_document_bytes)
    tokens = [m.prompt.chunk(text) for text in texts]
    with console.progress() as bar:
        task = bar.add_task("fitting", total=100, rate="%")
        (codebook,) = fit(
            m.encoder,
            tokens,
            m.prompt.tail(REPEAT),
            model=m.profile.model,
            ratios=[ratio],
            progress=lambda share: bar.update(task, completed=round(100 * share)),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_bytes(codebook.payload)
    new.replace(file)
    return Made(file, Transform(codebook).name, codebook.ratio)


def chunks(
    paths: Sequence[Path], count: Callable[[str], int], most: int, max_bytes: int
) -> list[str]:
    """Draw at most `most` chunks at random from the documents under `paths`.

    Raises UsageError naming the first file that cannot be read.
    """
    found: list[str] = []
    for document in read(paths, max_bytes):
        if isinstance(document, Failure):
            raise UsageError(f"{document.source}: {document.error}")
        found.extend(piece.text for piece in split(document.title, document.text, count))
    random.Random(0).shuffle(found)  # noqa: S311 (a sample, not a secret)
    return found[:most]
