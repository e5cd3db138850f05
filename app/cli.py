"""The `membank` command. Thin: it reads arguments, calls what is below, prints."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from app import console
from app.errors import MembankError, UsageError
from app.settings import settings

app = typer.Typer(
    help="Explicit memory for language models: private banks in Postgres, answered from memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tenants = typer.Typer(help="Companies.", no_args_is_help=True)
principals = typer.Typer(help="Users and services of a tenant.", no_args_is_help=True)
banks = typer.Typer(help="Collections of documents.", no_args_is_help=True)
benches = typer.Typer(help="Measure, beside a peer, in one run.", no_args_is_help=True)
app.add_typer(tenants, name="tenant")
app.add_typer(principals, name="principal")
app.add_typer(banks, name="bank")
app.add_typer(benches, name="bench")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of the tenant.")]
Bank = Annotated[str, typer.Option("--bank", help="Name of the bank.")]
As = Annotated[str, typer.Option("--as", help="Principal who asks.")]
LlamaPython = Annotated[
    Path | None,
    typer.Option(help="Python that has llama-cpp-python, for the peer; default: this one."),
]
Adapter = Annotated[str | None, typer.Option(help="DIR, none or auto; default MEMBANK_ADAPTER.")]
K = Annotated[int | None, typer.Option("-k", help="Memories to use, 1 to 100.")]


def main() -> None:
    """Run the command: 0 done, 1 a named problem, 2 wrong usage. Never a traceback for these."""
    console.quiet()
    try:
        app()
    except MembankError as error:
        console.complain(f"membank: {error}")
        sys.exit(error.exit_code)


@app.command()
def up(as_json: Json = False) -> None:
    """Start Postgres, Valkey, migrations, worker and relay. Harmless when they run."""
    from app.local.stack import SERVICES, Stack

    stack = Stack()
    steps = list(stack.servers())
    for name in SERVICES:
        steps.append(stack.service(name))
        if not as_json:
            console.complain(f"{name} started")
    if as_json:
        console.print_json(_status(stack))
    else:
        for step in steps:
            console.say(f"{step.name:<12} {step.detail}")


@app.command()
def down(as_json: Json = False) -> None:
    """End everything that `up` started here, also after a crash. Data stays."""
    from app.local.stack import Stack

    ended = Stack().down()
    if as_json:
        console.print_json({"ended": ended})
    else:
        console.say(f"ended: {', '.join(ended)}" if ended else "nothing was running")


@app.command()
def status(as_json: Json = False) -> None:
    """Processes, addresses, queue and banks."""
    from app.local.stack import Stack

    now = _status(Stack())
    if as_json:
        console.print_json(now)
        return
    for process in now["processes"]:
        console.say(f"{process['name']:<10} pid {process['pid']:<8} {process['log']}")
    if not now["processes"]:
        console.say("nothing runs here: membank up")
    if now["queue"] is not None:
        console.say("queue      " + ", ".join(f"{v} {k}" for k, v in now["queue"].items()))
        head = ["tenant", "bank", "documents", "chunks", "memories", "pending", "failed"]
        console.table("banks", head, [[row[name] for name in head] for row in now["banks"]])
    elif now["processes"]:
        console.say("the database does not answer: membank up starts what is missing")


def _status(stack: Any) -> dict[str, Any]:
    from app.bank import status as state

    processes = [{"name": p.name, "pid": p.pid, "log": str(p.log)} for p in stack.running()]
    try:
        queue: dict[str, int] | None = state.queue()
        rows = state.banks()
    except MembankError:
        queue, rows = None, []
    needed = {"worker", "relay"} <= {p["name"] for p in processes}
    return {
        "running": needed and queue is not None,
        "processes": processes,
        **stack.addresses(),
        "queue": queue,
        "banks": rows,
    }


@app.command()
def migrate() -> None:
    """Make the roles and bring the database to this version's schema. `up` does it too."""
    from app.bank import schema

    schema.provision()
    schema.require_safe()
    console.say("the database is at this version's schema")


@app.command()
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
    from app.codebook import make

    made = make(paths, ratio, chunks, out)
    value = {"file": str(made.file), "codec": made.codec, "ratio": round(made.ratio, 1)}
    _made(value, f"{made.file}: {made.codec}, {made.ratio:.1f} times smaller", as_json)


@app.command()
def models(as_json: Json = False) -> None:
    """Make the configured models ready (the default is converted once) and name their profile."""
    from app.runtime import profile

    made = profile()
    if as_json:
        console.print_json({"profile": made.id, **asdict(made)})
    else:
        console.say(f"{settings().model} and {settings().embedder}: profile {made.id}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check versions, migration head, roles and row-level security. Exit 1 when one is off."""
    from app.bank import schema

    checks = schema.checks()
    if as_json:
        console.print_json(
            {"good": all(c.good for c in checks), "checks": [asdict(c) for c in checks]}
        )
    else:
        for check in checks:
            console.say(f"{'good' if check.good else 'BAD ':<5} {check.name:<24} {check.detail}")
    if not all(check.good for check in checks):
        raise typer.Exit(1)


@tenants.command("add")
def tenant_add(name: str, as_json: Json = False) -> None:
    """Make a tenant."""
    from app.access.tenants import add_tenant

    _made({"tenant": name, "id": add_tenant(name)}, f"tenant {name} made", as_json)


@principals.command("add")
def principal_add(
    name: str,
    tenant: Tenant,
    group: Annotated[list[str] | None, typer.Option(help="Group to join; made if new.")] = None,
    as_json: Json = False,
) -> None:
    """Make a principal, or let a known one join more groups."""
    from app.access.tenants import add_principal

    made = add_principal(tenant, name, group or [])
    _made({"principal": name, "id": made, "groups": group or []}, f"principal {name} made", as_json)


@banks.command("add")
def bank_add(name: str, tenant: Tenant, as_json: Json = False) -> None:
    """Make a bank, encoded by the models that the settings name."""
    from app.access.tenants import add_bank
    from app.runtime import profile

    bank = add_bank(tenant, name, profile().id, profile().json())
    _made({"bank": name, "id": bank.id, "profile": bank.profile}, f"bank {name} made", as_json)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders, .jsonl or .jsonl.gz.")],
    bank: Bank,
    tenant: Annotated[
        str | None,
        typer.Option(
            help="Name of the tenant. Without it every JSONL row goes to the tenant that its"
            " `tenant` field names, to that tenant's bank of the given name."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Who may read: principal:P, group:G or everyone. Repeatable."),
    ] = None,
    create: Annotated[bool, typer.Option(help="Make tenants and banks that are missing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until everything is encoded.")] = False,
    as_json: Json = False,
) -> None:
    """Store documents; workers encode them. One file's failure holds no other up.

    The four handbooks of a JSONL file with a `tenant` field in one call:
    membank ingest handbooks.jsonl.gz --bank handbook --create --wait
    """
    from app.ingest.command import run

    report = run(paths, tenant, bank, tuple(allow) if allow else None, create, wait)
    if as_json:
        console.print_json(report.json())
    else:
        console.say(report.summary())
    for failure in report.failed:
        place = "" if failure.error.startswith(failure.source) else f"{failure.source}: "
        console.complain(f"membank: {place}{failure.error}")
    if report.asleep:
        console.complain(f"membank: {report.asleep}")
    if report.failed or report.asleep:
        raise typer.Exit(1)


@app.command()
def search(
    question: str, tenant: Tenant, bank: Bank, principal: As, k: K = None, as_json: Json = False
) -> None:
    """The memories nearest to a question that the principal may read."""
    from app.answer.retrieval import Reader, find

    found = find(Reader.of(tenant, bank, principal), question, 5 if k is None else k)
    results = [asdict(passage) for passage in found.passages]
    if as_json:
        console.print_json({"results": results, "timings_ms": found.timings_ms})
        return
    for row in results:
        console.say(f"{row['score']:.3f}  {row['title']}  ({row['source']})")
        console.say(f"       {' '.join(row['text'].split())[:160]}")
    if not results:
        console.say("nothing in this bank that you may read")


@app.command()
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
    refresh_every: Annotated[
        int | None,
        typer.Option(
            help="Search again after every so many tokens of the answer, with what it says so far;"
            " 0: never; default MEMBANK_REFRESH_EVERY. Only with --mode memory."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a question from a bank, with sources and timings."""
    from app.answer.retrieval import Reader
    from app.answer.service import ask as answer_to

    if mode not in ("memory", "rag", "closed"):
        raise UsageError(f"--mode is {mode!r}: memory, rag or closed")
    chosen: Any = mode
    reader = Reader.of(tenant, bank, principal)
    answer = answer_to(
        reader,
        question,
        k=k,
        mode=chosen,
        max_tokens=max_tokens,
        min_score=min_score,
        refresh_every=refresh_every,
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


@app.command()
def forget(
    document_id: str,
    tenant: Tenant,
    bank: Annotated[str | None, typer.Option(help="Only in this bank.")] = None,
    as_json: Json = False,
) -> None:
    """Delete a document, its chunks, keys, blobs and queued work. Prints a receipt."""
    from app.access.tenants import find_bank, tenant_id
    from app.bank.documents import forget as delete

    only = find_bank(tenant, bank).id if bank else None
    receipt = asdict(delete(tenant_id(tenant), document_id, only)) | {"cache_entries": 0}
    if as_json:
        console.print_json({"document_id": document_id, **receipt})
    else:
        console.say("forgotten: " + ", ".join(f"{v} {k}" for k, v in receipt.items()))


@app.command()
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
    _made(done.json(), done.line(), as_json)


@app.command("eval")
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

    modes: Any = tuple(part.strip() for part in mode.split(","))
    plan = command.Plan(modes, tuple(_numbers("-k", k)), n, seed, max_tokens, gold, adapter)
    report, value = command.run(file, plan, corpus, out)
    if as_json:
        console.print_json(value)
    else:
        report.show()


@app.command()
def demo() -> None:
    """Show the main job on sample handbooks, in a temporary home. Exit 0 only if all holds."""
    from app.demo.run import run

    raise typer.Exit(run())


@benches.command("ttft")
def bench_ttft(
    n: Annotated[int, typer.Option("-n", help="Questions asked.")] = 20,
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

    plan = ttft.Plan.of(ttft.questions_of(questions), n, _numbers("-k", k), llama_python)
    if tenant and bank and principal:
        from app.answer.retrieval import Reader

        ttft.run_on(Reader.of(tenant, bank, principal), plan, as_json)
    elif tenant or bank or principal:
        raise UsageError("--tenant, --bank and --as go together; without them a sample is made")
    else:
        ttft.run_on_sample(plan, as_json)


@benches.command("encode")
def bench_encode(
    n: Annotated[int, typer.Option("-n", help="Turns.")] = 5,
    compaction: Annotated[
        str, typer.Option(help="What is compacted, as a profile says it.")
    ] = "reconstruction:0.5+match",
    document_tokens: Annotated[
        int, typer.Option(help="Length of the document that is streamed.")
    ] = 8192,
    as_json: Json = False,
) -> None:
    """Tokens a second beside the bare forward pass, with compaction and packing, and memory."""
    from benchmarks import encode

    encode.run(n, compaction, document_tokens, as_json)


@benches.command("decode")
def bench_decode(
    n: Annotated[int, typer.Option("-n", help="Rounds in which all take turns.")] = 5,
    k: Annotated[int, typer.Option("-k", help="Memories of 128 tokens.")] = 5,
    llama_python: LlamaPython = None,
    as_json: Json = False,
) -> None:
    """Tokens a second and whole answers, for each choice of weights, beside llama.cpp."""
    from benchmarks import decode

    decode.run(n, k, llama_python, as_json)


@benches.command("refresh")
def bench_refresh(
    n: Annotated[int, typer.Option("-n", help="Questions of two parts, 1 to 42.")] = 42,
    k: Annotated[
        str, typer.Option("-k", help="Memories at a time: one number or several.")
    ] = "1,2",
    every: Annotated[
        str, typer.Option(help="Tokens between two searches; never is always there.")
    ] = "16,32,64",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    as_json: Json = False,
) -> None:
    """Searching again during an answer: what it costs, and how many answers it finds."""
    from benchmarks import refresh

    refresh.run(n, _numbers("-k", k), _numbers("--every", every), max_tokens, as_json)


@benches.command("frontier")
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
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
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
    numbers = _numbers("-n", n)[: len(files)]
    more: Any = {"max_tokens": max_tokens, "seed": seed, "adapter": adapter, "as_json": as_json}
    frontier.run(files, numbers, names, out, **more)


@benches.command("edit")
def bench_edit(
    file: Annotated[Path, typer.Argument(help="Question file: .jsonl or .jsonl.gz.")],
    n: Annotated[int, typer.Option("-n", help="Passages to edit.")] = 60,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Draws passages and new answers.")] = 0,
    as_json: Json = False,
) -> None:
    """Swap the answer in a passage, encode it again, ask again: the new answer or the old one."""
    from benchmarks import edit

    edit.run(file, n, adapter, seed, as_json)


@benches.command("language")
def bench_language(
    file: Annotated[Path, typer.Argument(help="Passages: id, title and text a line.")],
    n: Annotated[int, typer.Option("-n", help="Passages to read.")] = 100,
    k: Annotated[int, typer.Option("-k", help="Irrelevant memories.")] = 5,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Draws passages.")] = 0,
    as_json: Json = False,
) -> None:
    """Perplexity of plain text, alone and beside memories that have nothing to do with it."""
    from benchmarks import language

    language.run(file, n, k, adapter, seed, as_json)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} is {text!r}: give a number, or several by commas") from None


def _made(value: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        console.print_json(value)
    else:
        console.say(line)


if __name__ == "__main__":
    main()
