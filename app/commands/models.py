"""The configured models, made ready and fitted to."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Json, made
from app.process import console
from app.settings import settings

commands = typer.Typer()


@commands.command()
def models(as_json: Json = False) -> None:
    """Make the configured models ready (the default is converted once) and name their profile."""
    from app.runtime.identity import profile

    found = profile()
    if as_json:
        console.print_json({"profile": found.id, **asdict(found)})
    else:
        console.say(f"{settings().model} and {settings().embedder}: profile {found.id}")


@commands.command()
def codebook(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of text like the bank's.")],
    ratio: Annotated[
        float, typer.Option(help="Times smaller than bfloat16.", min=1.0, max=200.0)
    ] = 32.0,
    chunks: Annotated[int, typer.Option(help="Chunks of 128 tokens to fit on.", min=50)] = 370,
    out: Annotated[
        Path | None, typer.Option(help="File; default: where MEMBANK_CODEC=auto finds it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the codec to the configured model, once for a model. Takes some minutes.

    A new codebook is a new profile: banks that were made before keep the old one.
    """
    from app.training.codebook import make

    new = make(paths, ratio, chunks, out)
    value = {"file": str(new.file), "codec": new.codec, "ratio": round(new.ratio, 1)}
    made(value, f"{new.file}: {new.codec}, {new.ratio:.1f} times smaller", as_json)
