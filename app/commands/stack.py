"""The local stack: up, down, status, its schema and its checks."""

from dataclasses import asdict
from datetime import timedelta
from itertools import chain
from typing import Annotated, Any

import typer

from app.commands.options import Json
from app.errors import MembankError
from app.memory.profile import SETTINGS
from app.process import console

commands = typer.Typer()


@commands.command()
def up(
    workers: Annotated[
        int, typer.Option(help="Encoding workers, each with its own copy of the model.", min=1)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Start Postgres, Valkey, workers, relay and HTTP service, and migrate. Safe to repeat."""
    from app.local.stack import Stack

    stack = Stack()
    others = map(stack.service, ("relay", "api"))
    for step in chain(stack.servers(), stack.workers(workers), others):
        if not as_json:
            console.say(f"{step.name:<12} {step.detail}")
    if as_json:
        console.print_json(_status(stack))
        return
    console.say(f"\nAPI          {stack.addresses()['api_url']}/v1")
    console.say("next         membank tenant add NAME, or membank --help")


@commands.command()
def down(as_json: Json = False) -> None:
    """End everything that `up` started here, also after a crash. Data stays."""
    from app.local.stack import Stack

    ended = Stack().down()
    if as_json:
        console.print_json({"ended": ended})
    else:
        console.say(f"ended: {', '.join(ended)}" if ended else "nothing was running")


@commands.command()
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
    if now["api_url"] is not None:
        console.say(f"api        {now['api_url']}")
    if now["queue"] is not None:
        console.say("queue      " + ", ".join(f"{v} {k}" for k, v in now["queue"].items()))
        head = ["tenant", "bank", "documents", "chunks", "memories", "pending", "failed"]
        console.table("banks", head, [[row[name] for name in head] for row in now["banks"]])
        for row in now["banks"]:
            if row["pending"] or row["failed"] or row["paused"]:
                console.say(f"{row['tenant']}/{row['bank']}: {_open_work(row)}")
            if row["next_profile_id"]:
                console.say(f"{row['tenant']}/{row['bank']}: {_change(row)}")
    elif now["processes"]:
        console.say("the database does not answer: membank up starts what is missing")


def _open_work(row: dict[str, Any]) -> str:
    told = ["paused (membank tenant resume)"] if row["paused"] else []
    if row["coverage"] is not None:
        told.append(f"{row['coverage']:.0%} encoded")
    if row["time_left"] is not None:
        left = timedelta(seconds=round(row["time_left"]))
        told.append(f"{row['throughput']:.1f} memories a second, {left} left")
    if row["staleness"] is not None:
        told.append(f"oldest work is {row['staleness']:.0f} s old")
    if row["attempts"]:
        told.append(f"up to {row['attempts']} attempts")
    if row["attempts"] and row["next_try"]:
        told.append(f"next try {row['next_try']:%H:%M:%S}")
    if row["last_error"]:
        told.append(f"last error: {' '.join(row['last_error'].split())}")
    return ", ".join(told)


def _change(row: dict[str, Any]) -> str:
    told = [f"{row['memories_next']} of {row['chunks']} chunks"]
    if row["pending_next"]:
        told.append(f"{row['pending_next']} wait for workers of that profile")
        told.append(f"oldest work is {row['staleness_next']:.0f} s old")
    if row["failed_next"]:
        told.append(f"{row['failed_next']} failed and hold up the switch (membank jobs)")
    settings = [
        f"{SETTINGS.get(field, field)}: {_short(old)} -> {_short(new)}"
        for field, (old, new) in row["next_changes"].items()
    ]
    return (
        f"from profile {row['profile_id'][:12]} to {row['next_profile_id'][:12]}:"
        f" {', '.join(told)} ({'; '.join(settings)})"
    )


def _short(value: object) -> str:
    """A fingerprint by its beginning, a prefix on one line."""
    return " ".join(str(value).split())[:40]


def _status(stack: Any) -> dict[str, Any]:
    from app.db.session import Asker, transaction
    from app.local.stack import SERVICES
    from app.queue import status as state

    processes = [{"name": p.name, "pid": p.pid, "log": str(p.log)} for p in stack.running()]
    try:
        with transaction(Asker("admin")) as connection:
            queue: dict[str, int] | None = state.queue(connection)
            rows = state.banks(connection)
    except MembankError:
        queue, rows = None, []
    needed = set(SERVICES) <= {p["name"] for p in processes}
    return {
        "running": needed and queue is not None,
        "processes": processes,
        **stack.addresses(),
        "queue": queue,
        "banks": rows,
    }


_Before = Annotated[
    bool,
    typer.Option("--before", help="Only what the version that serves now goes on with."),
]


@commands.command()
def migrate(before: _Before = False) -> None:
    """Make the roles and bring the database to this version's schema. `up` does it too."""
    from app.db import schema

    schema.provision(before)
    schema.require_safe()
    console.say(
        "this version can be deployed: afterwards run membank migrate"
        if before
        else "the database is at this version's schema"
    )


@commands.command()
def doctor(as_json: Json = False) -> None:
    """Check all that keeps tenants apart, and the schema. Exit 1 when something is off."""
    from app.db import schema

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


@commands.command()
def demo() -> None:
    """Show the main job on sample handbooks, in a temporary home. Exit 0 only if all holds."""
    from app.commands.demo import run

    raise typer.Exit(run())
