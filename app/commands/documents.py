"""Documents in and out, and who may read them: ingest, allow, forget."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Bank, Json, Tenant, made
from app.errors import UsageError
from app.process import console

commands = typer.Typer()


@commands.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders or archives.")],
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

    .md .markdown .txt .html .htm .pdf .docx .jsonl, also gzipped (.jsonl.gz);
    .zip .tar .tar.gz .tgz .tar.bz2 .tar.xz are read as folders are.
    Limits and errors: docs/how-to/ingest.md

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


@commands.command()
def allow(
    document_id: str,
    tenant: Tenant,
    bank: Bank,
    to: Annotated[
        list[str] | None,
        typer.Option(help="Who may read: principal:P, group:G or everyone. Repeatable."),
    ] = None,
    nobody: Annotated[bool, typer.Option("--nobody", help="Let nobody read it.")] = False,
    as_json: Json = False,
) -> None:
    """Say who may read a document, in place of its list. Counts from the next question on."""
    from app.access.lists import checked_access
    from app.access.tenants import of_tenant
    from app.bank.documents import set_access
    from app.bank.find import find_bank

    if bool(to) is nobody:
        raise UsageError("give --to, once for each who may read it, or --nobody")
    with of_tenant("worker", tenant) as (connection, asker):
        found = find_bank(connection, asker.tenant or 0, bank)
        access = checked_access(connection, found.tenant, to or [])
        set_access(connection, asker, found.id, document_id, access)
    made(
        {"document_id": document_id, "access": access},
        f"{document_id} may be read by {', '.join(access) or 'nobody'}",
        as_json,
    )


@commands.command()
def forget(
    document_id: str,
    tenant: Tenant,
    bank: Annotated[str | None, typer.Option(help="Only in this bank.")] = None,
    as_json: Json = False,
) -> None:
    """Delete a document, its chunks, keys, blobs and queued work. Prints a receipt."""
    from app.access.tenants import of_tenant
    from app.bank import documents
    from app.bank.find import find_bank

    with of_tenant("worker", tenant) as (connection, asker):
        owner = asker.tenant or 0
        only = find_bank(connection, owner, bank).id if bank else None
        deleted = documents.forget(connection, asker, document_id, only)
    receipt = asdict(documents.uncached(owner, *deleted))
    if as_json:
        console.print_json({"document_id": document_id, **receipt})
    else:
        console.say("forgotten: " + ", ".join(f"{v} {k}" for k, v in receipt.items()))
