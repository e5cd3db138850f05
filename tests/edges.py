"""The program's verbs, each in a transaction of its own, for tests that set up or look on.

What a name means to an operator (a tenant by its name, a bank of it) is looked up here too.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.access import audit, keys, lists, principals, quota, tenants
from app.access.quota import Quota
from app.access.tenants import of_tenant
from app.bank import attachments, banks, documents, find, members, profiles, uploads
from app.bank.documents import Draft, Piece, Receipt, Stored
from app.bank.find import Bank
from app.bank.roles import BankRole
from app.db.session import Asker, transaction
from app.queue import jobs, status
from app.queue import uploads as waiting
from app.queue.jobs import State
from app.queue.outbox import Work


def add_tenant(name: str) -> int:
    with transaction(Asker("admin")) as connection:
        return tenants.add_tenant(connection, name)


def tenant_id(name: str) -> int:
    with transaction(Asker("app")) as connection:
        return tenants.tenant_id(connection, name)


def pause_tenant(name: str, paused: bool) -> None:
    with of_tenant("admin", name) as (connection, asker):
        tenants.pause_tenant(connection, asker.tenant or 0, paused)


def add_principal(tenant: str, name: str, groups: Sequence[str] = ()) -> int:
    with of_tenant("admin", tenant) as (connection, asker):
        return principals.add_principal(connection, asker.tenant or 0, name, groups)


def remove_principal(tenant: str, name: str) -> None:
    with of_tenant("admin", tenant) as (connection, asker):
        principals.remove_principal(connection, asker.tenant or 0, name)


def find_principal(tenant: str, name: str) -> Asker:
    with of_tenant("app", tenant) as (connection, asker):
        return principals.find_principal(connection, asker.tenant or 0, name)


def join_group(tenant: str, group: str, principal: str) -> None:
    with of_tenant("admin", tenant) as (connection, asker):
        principals.join_group(connection, asker.tenant or 0, group, principal)


def leave_group(tenant: str, group: str, principal: str) -> None:
    with of_tenant("admin", tenant) as (connection, asker):
        principals.leave_group(connection, asker.tenant or 0, group, principal)


def checked_access(tenant: int, entries: Sequence[str]) -> list[str]:
    with transaction(Asker("app", tenant)) as connection:
        return lists.checked_access(connection, tenant, entries)


def issue(tenant: str, principal: str, *how: Any, **named: Any) -> keys.Issued:
    with of_tenant("admin", tenant) as (connection, asker):
        return keys.issue(connection, asker.tenant or 0, principal, *how, **named)


def key_list(tenant: str) -> list[dict[str, Any]]:
    with of_tenant("admin", tenant) as (connection, asker):
        return keys.keys(connection, asker.tenant or 0)


def revoke_key(tenant: str, key: str) -> None:
    with of_tenant("admin", tenant) as (connection, asker):
        keys.revoke(connection, asker.tenant or 0, key)


def holder_of(token: str) -> keys.Holder:
    with transaction(Asker("app")) as connection:
        return keys.find(connection, token)


def set_quota(tenant: int, limits: Quota) -> None:
    with transaction(Asker("admin", tenant)) as connection:
        quota.set_quota(connection, tenant, limits)


def quota_of(tenant: int) -> tuple[Quota, Quota]:
    with transaction(Asker("admin", tenant)) as connection:
        return quota.quota_of(connection, tenant)


def usage(tenant: int, days: int) -> list[dict[str, Any]]:
    with transaction(Asker("admin", tenant)) as connection:
        return quota.usage(connection, tenant, days)


def events(tenant: int, since: datetime | None = None) -> list[dict[str, Any]]:
    with transaction(Asker("admin", tenant)) as connection:
        return list(audit.events(connection, tenant, since))


def expire(tenant: int, days: int) -> int:
    with transaction(Asker("worker", tenant)) as connection:
        return audit.expire(connection, tenant, days)


def add_bank(tenant: str, name: str, profile: str, spec: str, closed: bool = False) -> Bank:
    with of_tenant("admin", tenant) as (connection, asker):
        return banks.add_bank(connection, asker.tenant or 0, name, profile, spec, closed)


def find_bank(tenant: str, name: str) -> Bank:
    with of_tenant("app", tenant) as (connection, asker):
        return find.find_bank(connection, asker.tenant or 0, name)


def bank_now(tenant: int, bank: int) -> Bank:
    asker = Asker("app", tenant)
    with transaction(asker) as connection:
        return find.asked_bank(connection, asker, bank)


def grant(bank: Bank, entry: str, role: BankRole, by: Asker | None = None) -> None:
    asker = Asker("worker", bank.tenant, by and by.principal)
    with transaction(asker) as connection:
        members.grant(connection, asker, bank, entry, role)


def revoke(bank: Bank, entry: str, by: Asker | None = None) -> None:
    asker = Asker("worker", bank.tenant, by and by.principal)
    with transaction(asker) as connection:
        members.revoke(connection, asker, bank, entry)


def members_of(bank: Bank) -> dict[str, BankRole]:
    with transaction(Asker("app", bank.tenant)) as connection:
        return members.members(connection, bank)


def known_hash(tenant: int, bank: int, document: str) -> str | None:
    with transaction(Asker("worker", tenant)) as connection:
        return documents.known_hashes(connection, tenant, bank, [document]).get(document)


def store(
    tenant: int,
    bank: int,
    draft: Draft,
    pieces: Sequence[Piece] | None,
    by: int | None = None,
) -> Stored:
    asker = Asker("worker", tenant, by)
    with transaction(asker) as connection:
        return documents.store(connection, asker, bank, draft, pieces)


def read_text(tenant: int, bank: int, document: str) -> tuple[str, str, int] | None:
    with transaction(Asker("worker", tenant)) as connection:
        return documents.read_text(connection, tenant, bank, document)


def access_of(tenant: int, bank: int, document: str) -> list[str]:
    with transaction(Asker("worker", tenant)) as connection:
        return documents.access_of(connection, tenant, bank, document)


def set_access(
    tenant: int, bank: int, document: str, access: Sequence[str], by: int | None = None
) -> None:
    asker = Asker("worker", tenant, by)
    with transaction(asker) as connection:
        documents.set_access(connection, asker, bank, document, access)


def forget(tenant: int, document: str, bank: int | None = None, by: int | None = None) -> Receipt:
    asker = Asker("worker", tenant, by)
    with transaction(asker) as connection:
        deleted = documents.forget(connection, asker, document, bank)
    return documents.uncached(tenant, *deleted)


def begin(tenant: int, bank: int, profile: str, spec: str) -> None:
    with transaction(Asker("admin", tenant)) as connection:
        profiles.begin(connection, tenant, bank, profile, spec)


def drop(tenant: int, bank: int) -> None:
    with transaction(Asker("admin", tenant)) as connection:
        profiles.drop(connection, tenant, bank)


def switch() -> list[tuple[int, int]]:
    """Tenant and bank of each that was switched."""
    with transaction(Asker("worker")) as connection:
        changing = profiles.changing(connection)
    done = []
    for tenant, bank in changing:
        with transaction(Asker("worker", tenant)) as connection:
            if profiles.switch(connection, tenant, bank):
                done.append((tenant, bank))
    return done


def queue() -> dict[str, int]:
    with transaction(Asker("admin")) as connection:
        return status.queue(connection)


def backlog(profile: str) -> dict[str, float]:
    with transaction(Asker("worker")) as connection:
        return status.backlog(connection, profile)


def bank_status(tenant: int | None = None) -> list[dict[str, Any]]:
    with transaction(Asker("admin", tenant)) as connection:
        return status.banks(connection, tenant)


def progress(tenant: int, bank: int, names: Sequence[str]) -> dict[str, int]:
    with transaction(Asker("worker", tenant)) as connection:
        return status.progress(connection, tenant, bank, names)


def failures(tenant: int, bank: int, names: Sequence[str]) -> list[tuple[str, str]]:
    with transaction(Asker("worker", tenant)) as connection:
        return status.failures(connection, tenant, bank, names)


def find_jobs(
    limit: int,
    tenant: int | None = None,
    bank: str | None = None,
    document: str | None = None,
    state: State | None = None,
) -> tuple[list[dict[str, object]], int]:
    with transaction(Asker("admin", tenant)) as connection:
        return jobs.find(connection, limit, tenant, bank, document, state)


def retry(tenant: int, bank: int | None = None, document: str | None = None) -> int:
    with transaction(Asker("admin", tenant)) as connection:
        return jobs.retry(connection, tenant, bank, document)


def cancel(tenant: int, bank: int | None = None, document: str | None = None) -> int:
    with transaction(Asker("admin", tenant)) as connection:
        return jobs.cancel(connection, tenant, bank, document)


def discard(tenant: int, bank: int | None = None, document: str | None = None) -> int:
    with transaction(Asker("admin", tenant)) as connection:
        return jobs.discard(connection, tenant, bank, document)


def upload(asker: Asker, filename: str, purpose: str, content: bytes) -> uploads.File:
    with transaction(asker.in_role("worker")) as connection:
        return uploads.add(connection, asker, filename, purpose, content)


def attach(
    asker: Asker,
    bank: int,
    files: Sequence[tuple[str, dict[str, Any]]],
    batch: str | None = None,
) -> None:
    with transaction(asker.in_role("worker")) as connection:
        attachments.attach(connection, asker, bank, files, batch=batch)


def withdraw(asker: Asker, file: str, administers: bool) -> None:
    with transaction(asker.in_role("worker")) as connection:
        deleted = attachments.withdraw(connection, asker, file, administers)
    documents.uncached(asker.tenant or 0, *deleted)


def finish(work: Work, error: str | None = None, code: str | None = None) -> bool:
    with transaction(Asker("worker", work.tenant)) as connection:
        return waiting.finish(connection, work, error, code)
