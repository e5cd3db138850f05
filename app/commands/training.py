"""Training the reader, and what it is worth: train, eval."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.options import Adapter, Json, made, numbers
from app.errors import UsageError
from app.process import console

commands = typer.Typer()


@commands.command()
def train(
    files: Annotated[list[Path], typer.Argument(help="Question files: .jsonl or .jsonl.gz.")],
    out: Annotated[Path, typer.Option(help="Folder of adapter, checkpoint and record.")],
    mode: Annotated[str, typer.Option(help="memory, or rag: text in the prompt.")] = "memory",
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 600,
    batch: Annotated[int, typer.Option(help="Questions of a step.")] = 16,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 8,
    every: Annotated[int, typer.Option(help="Steps between validations.")] = 50,
    patience: Annotated[int, typer.Option(help="Validations without gain before it ends.")] = 6,
    valid: Annotated[int, typer.Option(help="Examples of a validation.")] = 160,
    distil: Annotated[
        bool, typer.Option(help="Learn what the untrained model says with the text in its prompt.")
    ] = False,
    begin: Annotated[
        Path | None, typer.Option("--from", help="Adapter file of another run to begin with.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Draws examples and first weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Train the reader on questions: LoRA on question and answer, memories as they are stored.

    MEMBANK_ADAPTER=DIR reads with what this wrote to --out.
    """
    from app.training import command
    from app.training.loop import Plan

    if mode not in ("memory", "rag"):
        raise UsageError(f"--mode is {mode!r}: memory or rag")
    way: Any = mode
    plan = Plan(
        steps, batch, rate=rate, rank=rank, every=every, patience=patience, valid=valid, seed=seed
    )
    done = command.run(files, out, plan, mode=way, distil=distil, resume=resume, begin=begin)
    made(done.json(), done.line(), as_json)


@commands.command("eval")
def evaluate(
    file: Annotated[Path, typer.Argument(help="Question file: .jsonl or .jsonl.gz.")],
    mode: Annotated[str, typer.Option(help="By commas.")] = "memory,rag,closed",
    n: Annotated[int | None, typer.Option("-n", help="Questions drawn; default all.")] = None,
    k: Annotated[str, typer.Option("-k", help="Memories: one number or several.")] = "1,3,5",
    adapter: Adapter = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Passages to search beside the questions' own.")
    ] = None,
    gold: Annotated[bool, typer.Option("--gold", help="Search each question's own only.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of answers, table and plot; a run goes on there.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 24,
    as_json: Json = False,
) -> None:
    """Ask a question file in each mode: how right, what was found, and what was made up."""
    from app.evaluation import command
    from app.evaluation.plan import Plan

    modes: Any = tuple(part.strip() for part in mode.split(","))
    plan = Plan(modes, tuple(numbers("-k", k)), n, seed, max_tokens, gold, adapter)
    report, value = command.run(file, plan, corpus, out)
    if as_json:
        console.print_json(value)
    else:
        report.show()
