"""Fit a codebook to the configured model and put it where the model finds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app import console
from app.errors import UsageError
from app.ingest import sample
from app.memory.calibrate import fit
from app.memory.transform import Transform
from app.runtime import codebooks, count_tokens, models
from app.settings import settings

REPEAT = "Repeat the text."


@dataclass(frozen=True)
class Made:
    """A codebook's file, the name of its codec, and how many times smaller than bfloat16."""

    file: Path
    codec: str
    ratio: float


def make(paths: Sequence[Path], ratio: float, most: int, out: Path | None) -> Made:
    """Fit on the text under `paths`. Raises UsageError for a file that cannot be read or is there.

    Raises ProfileError when there is too little text.
    """
    m = models()
    file = out or codebooks() / f"{m.profile.model[:16]}.safetensors"
    if file.suffix != ".safetensors":
        raise UsageError(f"{file}: a codebook's name ends in .safetensors")
    if file.exists():
        raise UsageError(f"{file} exists, and banks may need it: move it away, or give --out")
    texts = sample.chunks(paths, count_tokens, most, settings().max_document_bytes)
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
