"""The `membank` command: what it consists of, and how it ends."""

import sys
from importlib import metadata
from typing import Annotated

import typer

from app.commands import (
    audit,
    bench,
    context,
    documents,
    jobs,
    keys,
    models,
    questions,
    reconcile,
    stack,
    store,
    tenants,
    training,
    vault,
)
from app.errors import MembankError
from app.process import console

app = typer.Typer(
    help="Explicit memory for language models: private banks in Postgres, answered from memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"membank {metadata.version('membank')}")
        raise typer.Exit


@app.callback()
def _membank(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


for each in (stack, models, documents, questions, reconcile, training):
    app.add_typer(each.commands)
app.add_typer(tenants.tenants, name="tenant")
app.add_typer(tenants.principals, name="principal")
app.add_typer(tenants.groups, name="group")
app.add_typer(tenants.banks, name="bank")
app.add_typer(keys.commands, name="key")
app.add_typer(vault.commands, name="vault")
app.add_typer(store.commands, name="store")
app.add_typer(audit.commands, name="audit")
app.add_typer(jobs.commands, name="jobs")
app.add_typer(context.commands, name="context")
app.add_typer(bench.commands, name="bench")


def main() -> None:
    """Run the command: 0 done, 1 a named problem, 2 wrong usage. Never a traceback for these."""
    console.quiet()
    try:
        app()
    except MembankError as error:
        console.complain(f"membank: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
