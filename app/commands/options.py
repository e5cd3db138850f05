"""Options that several commands take, and what they print when they have made something."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.errors import UsageError
from app.process import console

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of the tenant.")]
Bank = Annotated[str, typer.Option("--bank", help="Name of the bank.")]
As = Annotated[str, typer.Option("--as", help="Principal who asks.")]
LlamaPython = Annotated[
    Path | None,
    typer.Option(help="Python that has llama-cpp-python, for the peer; default: this one."),
]
Adapter = Annotated[str | None, typer.Option(help="DIR, none or auto; default MEMBANK_ADAPTER.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only documents with this metadata; several times: with all of it. Or a condition as"
        " JSON, as docs/how-to/search.md says.",
    ),
]
K = Annotated[int | None, typer.Option("-k", help="Memories to use, 1 to 100.")]


def numbers(option: str, text: str) -> list[int]:
    """Numbers by commas. Raises UsageError, which names the option."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} is {text!r}: give a number, or several by commas") from None


def made(value: dict[str, Any], line: str, as_json: bool) -> None:
    """Print the value as JSON, or the line for people."""
    if as_json:
        console.print_json(value)
    else:
        console.say(line)
