"""The key that who is asking is signed with."""

from dataclasses import asdict
from typing import Annotated

import typer

from app.commands.options import Json, made

commands = typer.Typer(help="The key that says who is asking.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """Keep `rotate` a word of its own, though it is the only one."""


@commands.command()
def rotate(
    hours: Annotated[
        float, typer.Option(min=0, help="How long the old keys count as well; 0: not at all.")
    ] = 24.0,
    as_json: Json = False,
) -> None:
    """Sign with a new key: the one in MEMBANK_CONTEXT_KEY, else a fresh one in HOME/context.key."""
    from app.db import context_keys

    done = context_keys.rotate(hours)
    made(
        asdict(done),
        f"key {done.key} signs from now on; {done.old_keys} old ones count until"
        f" {done.until:%Y-%m-%d %H:%M} UTC",
        as_json,
    )
