"""The audit log."""

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from app.commands.options import Tenant
from app.errors import NotFoundError
from app.process import console

commands = typer.Typer(help="Who did what.", no_args_is_help=True)


@commands.command("export")
def audit_export(
    tenant: Tenant,
    since: Annotated[
        datetime | None, typer.Option(help="From this time on, such as 2026-11-01.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Write a tenant's events, the oldest first. Of an erased tenant there is its receipt."""
    from app.access.audit import erased, events
    from app.access.tenants import tenant_id
    from app.db.session import Asker, transaction

    with transaction(Asker("admin")) as connection:
        try:
            tenants = [tenant_id(connection, tenant)]
        except NotFoundError:
            tenants = erased(connection, tenant)
            if not tenants:
                raise
        for each in tenants:
            for event in events(connection, each, since):
                _show(event, as_json)


def _show(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(event)
        return
    what = " ".join([event["bank"] or "", *event["document_ids"]]).strip()
    detail = json.dumps(event["detail"]) if event["detail"] else ""
    console.say(
        f"{event['at']:%Y-%m-%d %H:%M:%S}  {event['actor']}  {event['action']}  {what}"
        f"  {detail}".rstrip()
    )
