"""Banks: how far their work is, who has a role in them, and who may read a document."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.access.lists import checked_access
from app.api.administration.fields import (
    Deleted,
    DocumentId,
    Entry,
    Listed,
    columns,
)
from app.api.administration.operator import administrator, operator, tenant_of
from app.api.http.caller import MayAdminister
from app.api.http.errors import responses
from app.api.http.fields import Name
from app.bank import documents, members, roles
from app.bank.find import find_bank
from app.db.session import transaction
from app.queue import status

router = APIRouter()


class Bank(BaseModel):
    """A bank and how far its work is; ages in seconds."""

    name: str
    profile_id: str
    next_profile_id: str | None
    documents: int
    chunks: int
    memories: int
    pending: int
    failed: int
    paused: bool
    staleness: float | None
    last_error: str | None


class Member(BaseModel):
    """Who has which role in a bank."""

    entry: str
    role: roles.BankRole


class NewRole(BaseModel):
    """A role to have in a bank; each includes those before it."""

    role: roles.BankRole


class Access(BaseModel):
    """Who may read a document: everyone, principal:NAME, group:NAME; nobody where it is empty."""

    access: list[Entry] = Field(max_length=1000)


@router.get("/banks", responses=responses())
def list_banks(who: MayAdminister) -> Listed[Bank]:
    with transaction(administrator(who)) as connection:
        rows = status.banks(connection, tenant_of(who))
    return Listed(data=[Bank(name=str(row["bank"]), **columns(Bank, row)) for row in rows])


@router.get("/banks/{bank:path}/members", responses=responses(404))
def list_members(bank: Name, who: MayAdminister) -> Listed[Member]:
    with transaction(operator(who, "app")) as connection:
        found = members.members(connection, find_bank(connection, tenant_of(who), bank))
    return Listed(data=[Member(entry=entry, role=role) for entry, role in found.items()])


@router.put("/banks/{bank:path}/members/{entry:path}", responses=responses(404))
def grant(bank: Name, entry: Entry, body: NewRole, who: MayAdminister) -> Member:
    """In place of the role that it had. Counts from the next question."""
    asker = operator(who, "worker")
    with transaction(asker) as connection:
        found = find_bank(connection, tenant_of(who), bank)
        members.grant(connection, asker, found, entry, body.role)
    return Member(entry=entry, role=body.role)


@router.delete("/banks/{bank:path}/members/{entry:path}", responses=responses(404))
def revoke_role(bank: Name, entry: Entry, who: MayAdminister) -> Deleted:
    asker = operator(who, "worker")
    with transaction(asker) as connection:
        members.revoke(connection, asker, find_bank(connection, tenant_of(who), bank), entry)
    return Deleted(id=entry)


@router.get("/banks/{bank:path}/documents/{document:path}/access", responses=responses(404))
def get_access(bank: Name, document: DocumentId, who: MayAdminister) -> Access:
    with transaction(operator(who, "worker")) as connection:
        found = find_bank(connection, tenant_of(who), bank)
        access = documents.access_of(connection, found.tenant, found.id, document)
    return Access(access=access)


@router.put("/banks/{bank:path}/documents/{document:path}/access", responses=responses(404))
def set_access(bank: Name, document: DocumentId, body: Access, who: MayAdminister) -> Access:
    """In place of its list. Counts from the next question, and encodes nothing."""
    asker = operator(who, "worker")
    with transaction(asker) as connection:
        found = find_bank(connection, tenant_of(who), bank)
        access = checked_access(connection, found.tenant, body.access)
        documents.set_access(connection, asker, found.id, document, access)
    return Access(access=access)
