"""Tenants, their principals and their banks."""

from typing import Annotated

import typer

from app.commands.options import Json, Tenant, made

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


@tenants.command("role")
def tenant_role(
    name: str,
    drop: Annotated[bool, typer.Option("--drop", help="Remove it instead.")] = False,
    as_json: Json = False,
) -> None:
    """Make a psql login that sees and edits this tenant's rows and no other's.

    Its password is shown once: psql's \\password changes it.
    """
    from app.access.logins import add_login, drop_login

    if drop:
        gone = drop_login(name)
        made({"tenant": name, "dropped": gone}, f"role {gone} of tenant {name} dropped", as_json)
        return
    login = add_login(name)
    made(
        {"tenant": name, "role": login.role, "password": login.password, "url": login.url},
        f"role {login.role} of tenant {name} made; shown only now:\npsql {login.url}",
        as_json,
    )


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
