"""The queue's work: list, retry, cancel, discard."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.options import Json, Tenant, made
from app.process import console
from app.queue.jobs import State

if TYPE_CHECKING:
    from sqlalchemy import Connection

commands = typer.Typer(help="Work that waits, is held or has failed.", no_args_is_help=True)

_OnlyTenant = Annotated[str | None, typer.Option("--tenant", help="Only of this tenant.")]
_OnlyBank = Annotated[str | None, typer.Option("--bank", help="Only of this bank.")]
_OnlyDocument = Annotated[str | None, typer.Option("--document", help="Only of this document id.")]


@commands.command("list")
def jobs_list(
    tenant: _OnlyTenant = None,
    bank: _OnlyBank = None,
    document: _OnlyDocument = None,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 100,
    as_json: Json = False,
) -> None:
    """Show files to store, documents to split and chunks to encode.

    What failed, what is held, what waits. A file that failed says so where it was put in.
    """
    from app.access.tenants import tenant_id
    from app.bank.find import find_bank
    from app.db.session import Asker, transaction
    from app.queue import jobs

    with transaction(Asker("admin")) as connection:
        owner = tenant_id(connection, tenant) if tenant is not None else None
        if owner is not None and bank is not None:
            find_bank(connection, owner, bank)
        rows, total = jobs.find(connection, limit, owner, bank, document, state)
    if as_json:
        console.print_json({"jobs": rows, "total": total})
        return
    if not rows:
        console.say("no jobs")
        return
    for row in rows:
        step = "split" if row["chunk_id"] is None else f"chunk {row['chunk_id']}"
        if row["file_id"] is not None:
            step = "store"
        line = (
            f"{row['state']:<9} {row['tenant']}/{row['bank']}/"
            f"{row['file_id'] or row['document_id']} {step}, {row['attempts']} attempts"
        )
        line += f", profile {str(row['profile_id'])[:12]}" if row["profile_id"] else ""
        line += f", next try {row['next_try']:%Y-%m-%d %H:%M:%S%z}" if row["next_try"] else ""
        error = " ".join(str(row["last_error"] or "").split())
        console.say(line + (f", {error}" if error else ""))
    if total > len(rows):
        console.say(f"and {total - len(rows)} more: --limit")


@commands.command("retry")
def jobs_retry(
    tenant: Tenant, bank: _OnlyBank = None, document: _OnlyDocument = None, as_json: Json = False
) -> None:
    """Put what has failed or was cancelled back in the queue, as if it had never been tried."""
    from app.queue import jobs

    _change("retried", jobs.retry, tenant, bank, document, as_json)


@commands.command("cancel")
def jobs_cancel(
    tenant: Tenant, bank: _OnlyBank = None, document: _OnlyDocument = None, as_json: Json = False
) -> None:
    """Take waiting work out of the queue. It counts as failed, and `retry` puts it back."""
    from app.queue import jobs

    _change("cancelled", jobs.cancel, tenant, bank, document, as_json)


@commands.command("discard")
def jobs_discard(
    tenant: Tenant, bank: _OnlyBank = None, document: _OnlyDocument = None, as_json: Json = False
) -> None:
    """Take what has failed or was cancelled off the list. Its chunks stay without a memory."""
    from app.queue import jobs

    _change("discarded", jobs.discard, tenant, bank, document, as_json)


def _change(
    done: str,
    step: Callable[["Connection", int, int | None, str | None], int],
    tenant: str,
    bank: str | None,
    document: str | None,
    as_json: bool,
) -> None:
    from app.access.tenants import of_tenant
    from app.bank.find import find_bank

    with of_tenant("admin", tenant) as (connection, asker):
        owner = asker.tenant or 0
        only = find_bank(connection, owner, bank).id if bank is not None else None
        count = step(connection, owner, only, document)
    made({"tenant": tenant, done: count}, f"{count} {done}", as_json)
