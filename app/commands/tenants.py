"""Tenants, their principals and their banks."""

from typing import Annotated

import typer

from app.commands.options import Json, Tenant, made
from app.errors import ConflictError

tenants = typer.Typer(help="Companies.", no_args_is_help=True)
principals = typer.Typer(help="Users and services of a tenant.", no_args_is_help=True)
banks = typer.Typer(help="Collections of documents.", no_args_is_help=True)


@tenants.command("add")
def tenant_add(name: str, as_json: Json = False) -> None:
    """Make a tenant."""
    from app.access.tenants import add_tenant

    made({"tenant": name, "id": add_tenant(name)}, f"tenant {name} made", as_json)


@tenants.command("pause")
def tenant_pause(name: str, as_json: Json = False) -> None:
    """Let workers take none of its work until it is resumed. What it stored is still served."""
    from app.access.tenants import pause_tenant

    pause_tenant(name, True)
    made({"tenant": name, "paused": True}, f"tenant {name} paused", as_json)


@tenants.command("resume")
def tenant_resume(name: str, as_json: Json = False) -> None:
    """Let workers take its work again."""
    from app.access.tenants import pause_tenant

    pause_tenant(name, False)
    made({"tenant": name, "paused": False}, f"tenant {name} resumed", as_json)


@principals.command("add")
def principal_add(
    name: str,
    tenant: Tenant,
    group: Annotated[list[str] | None, typer.Option(help="Group to join; made if new.")] = None,
    as_json: Json = False,
) -> None:
    """Make a principal, or let a known one join more groups."""
    from app.access.tenants import add_principal

    number = add_principal(tenant, name, group or [])
    made(
        {"principal": name, "id": number, "groups": group or []}, f"principal {name} made", as_json
    )


@banks.command("add")
def bank_add(name: str, tenant: Tenant, as_json: Json = False) -> None:
    """Make a bank, encoded by the models that the settings name."""
    from app.access.tenants import add_bank
    from app.runtime import profile

    bank = add_bank(tenant, name, profile().id, profile().json())
    made({"bank": name, "id": bank.id, "profile": bank.profile}, f"bank {name} made", as_json)


@banks.command("reencode")
def bank_reencode(
    name: str,
    tenant: Tenant,
    cancel: Annotated[bool, typer.Option("--cancel", help="Drop the change under way.")] = False,
    as_json: Json = False,
) -> None:
    """Encode a bank anew under the profile of the settings, while the present one serves.

    A worker with these settings does it, and one with the present ones must go on beside it. The
    bank is switched when all is encoded: membank status.
    """
    from app.access.tenants import find_bank
    from app.bank import profiles
    from app.runtime import profile

    bank = find_bank(tenant, name)
    if cancel:
        if bank.next_profile is None:
            raise ConflictError(f"bank {name!r} is not being encoded anew: nothing to cancel")
        profiles.drop(bank.tenant, bank.id)
        value = {"bank": name, "profile": bank.profile, "next_profile": None}
        made(value, f"bank {name} keeps profile {bank.profile}", as_json)
        return
    new = profile()
    profiles.begin(bank.tenant, bank.id, new.id, new.json())
    value = {"bank": name, "profile": bank.profile, "next_profile": new.id}
    made(value, f"bank {name} is being encoded anew under profile {new.id}", as_json)
