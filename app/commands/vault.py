"""Encryption of memories: how far it is, and new keys."""

import typer

from app.commands.options import Json, Tenant, made
from app.process import console

commands = typer.Typer(help="Keys that memories are encrypted with.", no_args_is_help=True)


@commands.command("status")
def vault_status(as_json: Json = False) -> None:
    """Show which keys there are, and how many memories each has."""
    from app.upkeep.data_keys import status

    found = status()
    if as_json:
        console.print_json(found)
        return
    told = ", then ".join(found["masters"]) or "none: new memories are not encrypted"
    console.say(f"master key: {told}")
    console.say(f"keyring: {found['keyring']}")
    for tenant in found["tenants"]:
        console.say(f"{tenant['tenant']}: {tenant['plain_blobs']} memories not encrypted")
        for key in tenant["keys"]:
            state = "destroyed" if key["destroyed"] else "" if key["in_keyring"] else "NO FILE"
            console.say(f"  version {key['version']}: {key['blobs']} memories {state}".rstrip())


@commands.command("rotate")
def vault_rotate(
    tenant: Tenant,
    as_json: Json = False,
) -> None:
    """Make a new data key. The relay encrypts all memories again, then destroys the old key."""
    from app.upkeep.data_keys import rotate

    version = rotate(tenant)
    made(
        {"tenant": tenant, "version": version},
        f"tenant {tenant} has key version {version}; membank vault status shows how far it is",
        as_json,
    )


@commands.command("rewrap")
def vault_rewrap(as_json: Json = False) -> None:
    """Wrap all data keys by the present master key, those of MEMBANK_OLD_MASTER_KEY_FILE too."""
    from app.upkeep.data_keys import rewrap

    count = rewrap()
    made({"rewrapped": count}, f"{count} data keys rewrapped", as_json)
