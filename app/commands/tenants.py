"""Tenants, their principals and their banks."""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from app.bank.roles import BankRole
from app.commands.options import Json, Tenant, made
from app.errors import ConflictError, UsageError
from app.process import console

tenants = typer.Typer(help="The companies that share this installation.", no_args_is_help=True)
principals = typer.Typer(help="The users and services of a tenant.", no_args_is_help=True)
groups = typer.Typer(help="Sets of principals.", no_args_is_help=True)
banks = typer.Typer(help="Collections of documents.", no_args_is_help=True)

_Principal = Annotated[str, typer.Option("--principal", help="Name of the principal.")]
_Limit = Annotated[str | None, typer.Option(help="A number, or none for no limit.")]
_To = Annotated[str, typer.Option("--to", help="principal:P, group:G or everyone.")]


@tenants.command("add")
def tenant_add(name: str, as_json: Json = False) -> None:
    """Create a tenant."""
    from app.access.tenants import add_tenant
    from app.db.session import Asker, transaction

    with transaction(Asker("admin")) as connection:
        number = add_tenant(connection, name)
    made({"tenant": name, "id": number}, f"tenant {name} made", as_json)


@tenants.command("pause")
def tenant_pause(name: str, as_json: Json = False) -> None:
    """Stop working on a tenant's documents until it is resumed. What is stored is still served."""
    _pause(name, True)
    made({"tenant": name, "paused": True}, f"tenant {name} paused", as_json)


@tenants.command("resume")
def tenant_resume(name: str, as_json: Json = False) -> None:
    """Work on a paused tenant's documents again."""
    _pause(name, False)
    made({"tenant": name, "paused": False}, f"tenant {name} resumed", as_json)


def _pause(name: str, paused: bool) -> None:
    from app.access.tenants import of_tenant, pause_tenant

    with of_tenant("admin", name) as (connection, asker):
        pause_tenant(connection, asker.tenant or 0, paused)


@tenants.command("role")
def tenant_role(
    name: str,
    drop: Annotated[bool, typer.Option("--drop", help="Drop the login instead.")] = False,
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


@tenants.command("quota")
def tenant_quota(
    name: str,
    documents: _Limit = None,
    memory_bytes: Annotated[
        str | None, typer.Option("--bytes", help="Bytes of memories, or none for no limit.")
    ] = None,
    requests: _Limit = None,
    tokens: _Limit = None,
    upload_bytes: Annotated[
        str | None, typer.Option(help="Bytes of uploaded files, or none for no limit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Set a tenant's limits and show what it uses. Limits that are not given stay as they are."""
    from app.access.quota import quota_of, set_quota
    from app.access.tenants import of_tenant

    given = {
        "documents": documents,
        "bytes": memory_bytes,
        "requests": requests,
        "tokens": tokens,
        "upload_bytes": upload_bytes,
    }
    changes = {each: _limit(each, value) for each, value in given.items() if value is not None}
    with of_tenant("admin", name) as (connection, asker):
        tenant = asker.tenant or 0
        if changes:
            before, _ = quota_of(connection, tenant)
            set_quota(connection, tenant, replace(before, **changes))
        limits, used = (asdict(each) for each in quota_of(connection, tenant))
    lines = [
        f"{each}: {used[each]} of {'no limit' if limits[each] is None else limits[each]}"
        for each in limits
    ]
    made({"tenant": name, "limits": limits, "used": used}, "\n".join(lines), as_json)


@tenants.command("erase")
def tenant_erase(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm: this cannot be undone.")] = False,
    as_json: Json = False,
) -> None:
    """Destroy a tenant's data keys, delete everything it has, and print a receipt."""
    from app.upkeep.erase import erase

    if not yes:
        raise UsageError(f"all of tenant {name!r} would be deleted for good: say --yes to do it")
    receipt = erase(name)
    rows = [f"{count:>10}  {table}" for table, count in receipt["rows"].items()]
    head = (
        f"tenant {name} erased: {receipt['keys_destroyed']} keys destroyed,"
        f" {receipt['objects']} objects and {receipt['cache_entries']} cache entries removed,"
        " rows deleted:"
    )
    lost = [
        f"key {name} was not in the keyring: if that is not the folder of worker and relay, delete"
        f" {name}.json there"
        for name in receipt["keys_missing"]
    ]
    made(receipt, "\n".join([head, *rows, *lost]), as_json)


def _limit(name: str, value: str) -> int | None:
    if value == "none":
        return None
    if not value.isdecimal() or int(value) > 2**62:
        raise UsageError(f"--{name} is {value!r}: give a whole number, or none")
    return int(value)


@principals.command("add")
def principal_add(
    name: str,
    tenant: Tenant,
    group: Annotated[list[str] | None, typer.Option(help="Group to join, created if new.")] = None,
    as_json: Json = False,
) -> None:
    """Create a principal, or add an existing one to more groups."""
    from app.access.principals import add_principal
    from app.access.tenants import of_tenant

    with of_tenant("admin", tenant) as (connection, asker):
        number = add_principal(connection, asker.tenant or 0, name, group or [])
    made(
        {"principal": name, "id": number, "groups": group or []}, f"principal {name} made", as_json
    )


@groups.command("add")
def group_add(name: str, tenant: Tenant, principal: _Principal, as_json: Json = False) -> None:
    """Add a principal to a group, which is created if it is new."""
    from app.access.principals import join_group
    from app.access.tenants import of_tenant

    with of_tenant("admin", tenant) as (connection, asker):
        join_group(connection, asker.tenant or 0, name, principal)
    made({"group": name, "principal": principal}, f"{principal} is in group {name}", as_json)


@groups.command("remove")
def group_remove(name: str, tenant: Tenant, principal: _Principal, as_json: Json = False) -> None:
    """Take a principal out of a group, from the next question on."""
    from app.access.principals import leave_group
    from app.access.tenants import of_tenant

    with of_tenant("admin", tenant) as (connection, asker):
        leave_group(connection, asker.tenant or 0, name, principal)
    made({"group": name, "principal": principal}, f"{principal} left group {name}", as_json)


@banks.command("add")
def bank_add(
    name: str,
    tenant: Tenant,
    closed: Annotated[
        bool,
        typer.Option("--closed", help="Give nobody access yet (default: all may read)."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Create a bank, to be encoded by the models that the settings name."""
    from app.access.tenants import of_tenant
    from app.bank.banks import add_bank
    from app.runtime.identity import profile

    encoder = profile()
    with of_tenant("admin", tenant) as (connection, asker):
        owner = asker.tenant or 0
        bank = add_bank(connection, owner, name, encoder.id, encoder.json(), closed)
    made({"bank": name, "id": bank.id, "profile": bank.profile}, f"bank {name} made", as_json)


@banks.command("reencode")
def bank_reencode(
    name: str,
    tenant: Tenant,
    cancel: Annotated[bool, typer.Option("--cancel", help="Abandon the change under way.")] = False,
    as_json: Json = False,
) -> None:
    """Encode a bank anew under the profile of the settings, while the present one serves.

    A worker with these settings does it, and one with the present ones must go on beside it. The
    bank is switched when all is encoded: membank status.
    """
    from app.access.tenants import of_tenant
    from app.bank import profiles
    from app.bank.find import find_bank
    from app.runtime.identity import profile

    new = None if cancel else profile()
    with of_tenant("admin", tenant) as (connection, asker):
        bank = find_bank(connection, asker.tenant or 0, name)
        if new is not None:
            profiles.begin(connection, bank.tenant, bank.id, new.id, new.json())
        elif bank.next_profile is not None:
            profiles.drop(connection, bank.tenant, bank.id)
        else:
            raise ConflictError(f"bank {name!r} is not being encoded anew: nothing to cancel")
    if new is None:
        value = {"bank": name, "profile": bank.profile, "next_profile": None}
        made(value, f"bank {name} keeps profile {bank.profile}", as_json)
        return
    value = {"bank": name, "profile": bank.profile, "next_profile": new.id}
    made(value, f"bank {name} is being encoded anew under profile {new.id}", as_json)


@banks.command("grant")
def bank_grant(
    name: str,
    tenant: Tenant,
    to: _To,
    role: Annotated[
        BankRole, typer.Option(help="What it may do. Each role includes those before it.")
    ],
    as_json: Json = False,
) -> None:
    """Give a principal, a group or everyone a role in a bank, in place of the one it had."""
    from app.access.tenants import of_tenant
    from app.bank.find import find_bank
    from app.bank.members import grant

    with of_tenant("worker", tenant) as (connection, asker):
        grant(connection, asker, find_bank(connection, asker.tenant or 0, name), to, role)
    made({"bank": name, "to": to, "role": role}, f"{to} is {role} of bank {name}", as_json)


@banks.command("revoke")
def bank_revoke(name: str, tenant: Tenant, to: _To, as_json: Json = False) -> None:
    """Take a role in a bank away, from the next question on."""
    from app.access.tenants import of_tenant
    from app.bank.find import find_bank
    from app.bank.members import revoke

    with of_tenant("worker", tenant) as (connection, asker):
        revoke(connection, asker, find_bank(connection, asker.tenant or 0, name), to)
    made({"bank": name, "to": to, "role": None}, f"{to} has no role in bank {name}", as_json)


@banks.command("members")
def bank_members(name: str, tenant: Tenant, as_json: Json = False) -> None:
    """Show who has which role in a bank."""
    from app.access.tenants import of_tenant
    from app.bank.find import find_bank
    from app.bank.members import members

    with of_tenant("app", tenant) as (connection, asker):
        found = members(connection, find_bank(connection, asker.tenant or 0, name))
    if as_json:
        console.print_json({"bank": name, "members": found})
        return
    for entry, role in found.items():
        console.say(f"{role:<6}  {entry}")
    if not found:
        console.say("nobody: the bank is closed")
