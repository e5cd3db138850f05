"""API keys: issue, list, revoke."""

from typing import Annotated

import typer

from app.commands.options import Json, Tenant, made
from app.process import console

commands = typer.Typer(help="API keys, by which a service knows a principal.", no_args_is_help=True)


@commands.command("issue")
def key_issue(
    tenant: Tenant,
    principal: Annotated[str, typer.Option(help="Whom the key stands for.")],
    scope: Annotated[
        str, typer.Option(help="read, write and admin, by commas: what it is good for.")
    ] = "read",
    expires: Annotated[int, typer.Option(metavar="DAYS", help="Days that it lasts.")] = 365,
    name: Annotated[str, typer.Option(help="To tell it from others.")] = "",
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once; only its hash is kept."""
    from app.access.keys import issue
    from app.access.tenants import of_tenant

    scopes = [part.strip() for part in scope.split(",")]
    with of_tenant("admin", tenant) as (connection, asker):
        issued = issue(connection, asker.tenant or 0, principal, scopes, expires, name)
    made(
        {"token": issued.token, "id": issued.id, "expires": issued.expires.isoformat()},
        f"{issued.token}\nkey {issued.id}, until {issued.expires:%Y-%m-%d}: keep it, it is not"
        " shown again",
        as_json,
    )


@commands.command("list")
def key_list(tenant: Tenant, as_json: Json = False) -> None:
    """Show a tenant's keys, without what makes them work."""
    from app.access.keys import keys
    from app.access.tenants import of_tenant

    with of_tenant("admin", tenant) as (connection, asker):
        found = keys(connection, asker.tenant or 0)
    if as_json:
        console.print_json({"keys": found})
        return
    for key in found:
        used = f"{key['last_used']:%Y-%m-%d %H:%M}" if key["last_used"] else "never"
        console.say(
            f"{key['id']:<8} {key['state']:<8} {key['principal']} {','.join(key['scopes'])}"
            f" {key['name']} until {key['expires']:%Y-%m-%d}, used {used}"
        )
    if not found:
        console.say("no keys")


@commands.command("revoke")
def key_revoke(key_id: str, tenant: Tenant, as_json: Json = False) -> None:
    """Let a key count no more, from the next request on."""
    from app.access.keys import revoke
    from app.access.tenants import of_tenant

    with of_tenant("admin", tenant) as (connection, asker):
        revoke(connection, asker.tenant or 0, key_id)
    made({"id": key_id, "revoked": True}, f"key {key_id} revoked", as_json)
