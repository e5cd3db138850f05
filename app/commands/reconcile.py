"""What the relay looks after now and then, at once."""

from dataclasses import asdict

import typer

from app.commands.options import Json
from app.process import console

commands = typer.Typer()


@commands.command()
def reconcile(as_json: Json = False) -> None:
    """Queue texts that changed while triggers were off, as after a restore. The relay does it too.

    Exit 0, whether there were any or not.
    """
    from app.upkeep.reconcile import reconcile as find

    found = find()
    if as_json:
        console.print_json(asdict(found))
    elif found.any or found.former_memories:
        console.say("reconciled: " + ", ".join(f"{v} {k}" for k, v in asdict(found).items() if v))
    else:
        console.say(f"nothing to reconcile in {found.tenants} tenants")


@commands.command()
def maintain(as_json: Json = False) -> None:
    """Make the vector indexes of large banks (MEMBANK_HNSW_FROM), drop those of small ones.

    Needs the owner's address. Searches and workers go on meanwhile. The relay does it too.
    """
    from app.search.indexes import keep
    from app.settings import settings

    kept = keep(settings().hnsw_from)
    if as_json:
        console.print_json(asdict(kept))
        return
    for verb, names in (("made", kept.made), ("dropped", kept.dropped)):
        if names:
            console.say(f"{verb}: {', '.join(names)}")
    console.say(f"{kept.indexes} vector indexes")
