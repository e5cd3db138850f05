"""Questions to a bank: search, ask."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from app.bank.filters import of_options
from app.commands.options import As, Bank, Json, K, Tenant, Where
from app.errors import UsageError
from app.process import console

commands = typer.Typer()


@commands.command()
def search(
    question: str,
    tenant: Tenant,
    bank: Bank,
    principal: As,
    k: K = None,
    min_score: Annotated[
        float, typer.Option(help="Least cosine of a memory; default all count.")
    ] = -1.0,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """The memories that fit a question best, of those that the principal may read."""
    from app.answer.retrieval import Reader, find

    condition = of_options(where or [])
    reader = Reader.of(tenant, bank, principal)
    found = find(reader, question, 5 if k is None else k, min_score, condition)
    results = [
        {name: value for name, value in asdict(passage).items() if name != "relevance"}
        for passage in found.passages
    ]
    if as_json:
        console.print_json({"results": results, "timings_ms": found.timings_ms})
        return
    for row in results:
        console.say(f"{row['score']:.3f}  {row['title']}  ({row['source']})")
        console.say(f"       {' '.join(row['text'].split())[:160]}")
    if not results:
        console.say("nothing in this bank that you may read")


@commands.command()
def ask(
    question: str,
    tenant: Tenant,
    bank: Bank,
    principal: As,
    k: K = None,
    mode: Annotated[
        str, typer.Option(help="memory, rag (text in the prompt) or closed.")
    ] = "memory",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    min_score: Annotated[
        float | None, typer.Option(help="Least cosine of a source; default MEMBANK_MIN_SCORE.")
    ] = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Answer a question from a bank, with sources and timings."""
    from app.answer.ask import ask as answer_to
    from app.answer.retrieval import Reader

    if mode not in ("memory", "rag", "closed"):
        raise UsageError(f"--mode is {mode!r}: memory, rag or closed")
    chosen: Any = mode
    condition = of_options(where or [])
    reader = Reader.of(tenant, bank, principal)
    answer = answer_to(
        reader,
        question,
        k=k,
        mode=chosen,
        max_tokens=max_tokens,
        least=min_score,
        where=condition,
    )
    if as_json:
        console.print_json(answer.json())
        return
    console.say(answer.answer)
    for memory in answer.memories:
        share = "" if memory.attention is None else f", attention {memory.attention:.2f}"
        console.say(f"  source: {memory.title} ({memory.source}), score {memory.score:.2f}{share}")
    times = answer.timings_ms
    console.say(f"  first token {times['first_token']:.0f} ms, total {times['total']:.0f} ms")
