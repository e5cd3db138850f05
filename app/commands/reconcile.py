"""Find changes that no trigger noticed, now."""

from dataclasses import asdict

import typer

from app import console
from app.commands.options import Json

commands = typer.Typer()


@commands.command()
def reconcile(as_json: Json = False) -> None:
    """Queue texts that changed while triggers were off, as after a restore. The relay does it too.

    Exit 0, whether there were any or not.
    """
    from app.bank.reconcile import reconcile as find

    found = find()
    if as_json:
        console.print_json(asdict(found))
    elif found.any or found.former_memories:
        console.say("reconciled: " + ", ".join(f"{v} {k}" for k, v in asdict(found).items() if v))
    else:
        console.say(f"nothing to reconcile in {found.tenants} tenants")
