"""Benchmarks, each with a peer in the same run."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.options import Adapter, Json, LlamaPython, numbers
from app.errors import UsageError

commands = typer.Typer(help="Benchmarks: Membank and a peer in the same run.", no_args_is_help=True)


@commands.command("ttft")
def bench_ttft(
    n: Annotated[int, typer.Option("-n", help="Questions to ask.")] = 20,
    k: Annotated[
        str, typer.Option("-k", help="Memories per question: one number or several.")
    ] = "1,2,5,10,20",
    questions: Annotated[
        Path | None, typer.Option(help="JSONL with a `question` a line, instead of the sample's.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="With --bank and --as: a bank of the running stack.")
    ] = None,
    bank: Annotated[str | None, typer.Option(help="Default: sample handbooks of its own.")] = None,
    principal: Annotated[str | None, typer.Option("--as", help="Principal who asks.")] = None,
    llama_python: LlamaPython = None,
    as_json: Json = False,
) -> None:
    """First token of memory, RAG and closed book, and of llama.cpp doing RAG."""
    from benchmarks import ttft

    plan = ttft.Plan.of(ttft.questions_of(questions), n, numbers("-k", k), llama_python)
    if tenant and bank and principal:
        from app.answer.retrieval import Reader

        ttft.run_on(Reader.of(tenant, bank, principal), plan, as_json)
    elif tenant or bank or principal:
        raise UsageError("--tenant, --bank and --as go together; without them a sample is made")
    else:
        ttft.run_on_sample(plan, as_json)


@commands.command("encode")
def bench_encode(
    n: Annotated[int, typer.Option("-n", help="Rounds.")] = 5,
    compaction: Annotated[
        str, typer.Option(help="What to compact, as in MEMBANK_COMPACTION.")
    ] = "reconstruction:0.5+match",
    document_tokens: Annotated[
        int, typer.Option(help="Length of the streamed document, in tokens.")
    ] = 8192,
    as_json: Json = False,
) -> None:
    """Tokens a second beside the bare forward pass, with compaction and packing, and memory."""
    from benchmarks import encode

    encode.run(n, compaction, document_tokens, as_json)


@commands.command("decode")
def bench_decode(
    n: Annotated[int, typer.Option("-n", help="Rounds; every variant runs once in each.")] = 5,
    k: Annotated[int, typer.Option("-k", help="Memories of 128 tokens.")] = 5,
    llama_python: LlamaPython = None,
    as_json: Json = False,
) -> None:
    """Tokens a second and whole answers, for each choice of weights, beside llama.cpp."""
    from benchmarks import decode

    decode.run(n, k, llama_python, as_json)


@commands.command("frontier")
def bench_frontier(
    squad: Annotated[
        Path | None, typer.Option(help="Questions over one passage: .jsonl or .jsonl.gz.")
    ] = None,
    hotpot: Annotated[Path | None, typer.Option(help="Questions over several passages.")] = None,
    n: Annotated[
        str, typer.Option("-n", help="Questions of each file: one number, or one for each.")
    ] = "300,200",
    settings_: Annotated[
        str,
        typer.Option(
            "--settings",
            help="By commas: bfloat16, codecs (int8, a codebook's FILE), COMPACTION@CODEC;"
            " default a choice of them. Dense comes always.",
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option(help="Folder of table, plot and answers; a run goes on from these.")
    ] = Path("frontier"),
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed for the questions.")] = 0,
    adapter: Annotated[
        str, typer.Option(help="What reads: DIR of an adapter, auto, or none for the model itself.")
    ] = "none",
    as_json: Json = False,
) -> None:
    """Size of a memory against quality of answers, beside RAG and closed book."""
    from benchmarks import frontier

    files = {name: file for name, file in (("squad", squad), ("hotpot", hotpot)) if file}
    # A comma in front of a digit is one of `layers:0-4,20-29`.
    names = [name.strip() for name in re.split(r",(?!\d)", settings_) if name.strip()]
    counts = numbers("-n", n)[: len(files)]
    more: Any = {"max_tokens": max_tokens, "seed": seed, "adapter": adapter, "as_json": as_json}
    frontier.run(files, counts, names, out, **more)


@commands.command("edit")
def bench_edit(
    file: Annotated[Path, typer.Argument(help="Question file: .jsonl or .jsonl.gz.")],
    n: Annotated[int, typer.Option("-n", help="Passages to edit.")] = 60,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Seed for passages and new answers.")] = 0,
    as_json: Json = False,
) -> None:
    """Swap the answer in a passage, encode it again, ask again: the new answer or the old one."""
    from benchmarks import edit

    edit.run(file, n, adapter, seed, as_json)


@commands.command("language")
def bench_language(
    file: Annotated[Path, typer.Argument(help="Passages: id, title and text a line.")],
    n: Annotated[int, typer.Option("-n", help="Passages to read.")] = 100,
    k: Annotated[int, typer.Option("-k", help="Irrelevant memories.")] = 5,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Seed for passages.")] = 0,
    as_json: Json = False,
) -> None:
    """Perplexity of plain text, alone and beside memories that have nothing to do with it."""
    from benchmarks import language

    language.run(file, n, k, adapter, seed, as_json)


@commands.command("long")
def bench_long(
    file: Annotated[Path, typer.Argument(help="Question file: .jsonl or .jsonl.gz.")],
    n: Annotated[int, typer.Option("-n", help="Questions to ask.", min=1)] = 100,
    k: Annotated[int, typer.Option("-k", help="Memories of a question.", min=1, max=100)] = 3,
    tokens: Annotated[int, typer.Option(help="Least length of the document.", min=1)] = 100_000,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Seed for questions and the order of passages.")] = 0,
    as_json: Json = False,
) -> None:
    """One document beyond the model's window: memories of it, or its beginning in the prompt."""
    from benchmarks import long

    long.run(file, n, k, tokens, adapter, seed, as_json)


@commands.command("queue")
def bench_queue(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files to ingest; default the sample handbooks.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows through the database alone.", min=100)] = 20_000,
    workers: Annotated[
        int,
        typer.Option(help="Workers to compare with a single one.", min=1),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Rows through trigger, relay and claim; a whole pipeline beside the encoder alone."""
    from benchmarks import queue

    queue.run(rows, paths or [], workers, as_json)


@commands.command("vault")
def bench_vault(
    n: Annotated[int, typer.Option("-n", help="Loads of each kind.", min=1)] = 200,
    k: Annotated[str, typer.Option("-k", help="Memories of a load.")] = "5,20",
    as_json: Json = False,
) -> None:
    """Loading memories that are encrypted beside the same that are not; notes in the audit log."""
    from benchmarks import vault

    vault.run(n, numbers("-k", k), as_json)


@commands.command("cache")
def bench_cache(
    n: Annotated[int, typer.Option("-n", help="Loads and answers of each kind.", min=1)] = 20,
    k: Annotated[str, typer.Option("-k", help="Memories of a load.")] = "1,5,20",
    as_json: Json = False,
) -> None:
    """Loading and the first token from memory, disk, Postgres and a folder as object store."""
    from benchmarks import cache

    cache.run(n, numbers("-k", k), as_json)


@commands.command("neighbours")
def bench_neighbours(
    n: Annotated[int, typer.Option("-n", help="Rounds of each kind.", min=2)] = 40,
    k: Annotated[int, typer.Option("-k", help="Memories of an answer.", min=1, max=100)] = 5,
    as_json: Json = False,
) -> None:
    """Whether a tenant can tell from times that another, with the same text, has asked before."""
    from benchmarks import neighbours

    neighbours.run(n, k, as_json)


@commands.command("search")
def bench_search(
    rows: Annotated[
        int, typer.Option(help="Memories of all tenants together.", min=1000)
    ] = 1_000_000,
    sizes: Annotated[
        str, typer.Option(help="Memories of the tenants that are asked, smallest first.")
    ] = "10,1000,10000,100000",
    n: Annotated[int, typer.Option("-n", help="Questions of each reader.", min=10)] = 60,
    corpus: Annotated[
        Path | None, typer.Option(help="Passages whose keys are taken; default keys are drawn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for keys and questions.")] = 0,
    langchain_python: Annotated[
        Path | None, typer.Option(help="A Python with langchain-postgres, to measure it as well.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search under access lists beside one index over all tenants: recall, rows and time."""
    from benchmarks import search

    plan = search.Plan(tuple(numbers("--sizes", sizes)), rows, n, seed, langchain_python)
    search.run(plan, corpus, as_json)


@commands.command("serve")
def bench_serve(
    clients: Annotated[str, typer.Option(help="Clients at a time: one number or several.")] = (
        "1,4,16,64"
    ),
    n: Annotated[
        int, typer.Option("-n", help="Requests of each load; at least two a client.")
    ] = 64,
    k: Annotated[int, typer.Option("-k", help="Memories per question.")] = 5,
    as_json: Json = False,
) -> None:
    """The HTTP service under load, memory beside RAG."""
    from benchmarks import serve

    serve.run(numbers("--clients", clients), n, k, as_json)
