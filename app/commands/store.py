"""Where the bytes of memories are: moving them, and removing what is left over."""

from typing import Annotated

import typer

from app.commands.options import Json, made
from app.process import console
from app.upkeep.move import Target

commands = typer.Typer(help="The object store of memories.", no_args_is_help=True)


@commands.command("move")
def store_move(
    to: Annotated[Target, typer.Option("--to", help="Where they are to be.")],
    as_json: Json = False,
) -> None:
    """Move all memories into the object store, or into Postgres. Can be ended and begun again.

    Into the store: MEMBANK_BLOB_STORE. Back: set MEMBANK_OLD_BLOB_STORE in its place first.
    """
    from app.upkeep.move import move, waiting

    total, blobs, missing = waiting(to), 0, 0
    with console.progress() as bar:
        task = bar.add_task(f"to {to}", total=total, rate="")
        for page in move(to):
            blobs, missing = blobs + page.blobs, missing + page.missing
            bar.update(task, advance=page.blobs)
    line = f"{blobs} memories moved to {to}"
    if missing:
        line += f"; {missing} objects are missing: delete their rows, and they are encoded again"
    made({"to": to, "moved": blobs, "missing": missing}, line, as_json)
    if missing:
        raise typer.Exit(1)


@commands.command("sweep")
def store_sweep(as_json: Json = False) -> None:
    """Remove objects older than an hour that no memory is of, as after a restored backup."""
    from app.upkeep.leftovers import sweep

    removed = sum(sweep())
    made({"removed": removed}, f"{removed} objects removed", as_json)
