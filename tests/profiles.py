"""A change of profile as tests make it: two profiles, and what is served and waits under them."""

from app.search.search import search
from app.store.blobs import load_blobs
from tests import edges
from tests.conftest import NORTH, Company, work_off
from tests.edges import bank_now

NEXT = "next-profile"
WORK = "SELECT document_id, chunk_id IS NULL, profile_id, priority FROM outbox ORDER BY 1, 2, 3"


def filled(company: Company) -> Company:
    """With two documents of two chunks each, all encoded."""
    company.store("a", "one\n\ntwo")
    company.store("b", "three\n\nfour")
    work_off()
    return company


def begin(company: Company, profile: str = NEXT, spec: str = "{}") -> None:
    edges.begin(company.tenant, company.bank.id, profile, spec)


def profile_of(company: Company) -> tuple[str, str | None]:
    """The bank's profile and its next one."""
    bank = bank_now(company.tenant, company.bank.id)
    return bank.profile, bank.next_profile


def served(company: Company, profile: str | None = None) -> list[str]:
    """What is found and can be loaded, under the bank's profile of the moment."""
    profile = profile or profile_of(company)[0]
    asker = company.reader("alice")
    found = search(asker, company.bank.id, profile, NORTH, 100)
    blobs = load_blobs(asker, profile, [p.id for p in found])
    return sorted(p.text for p in found if blobs[p.id] == b"kv of " + p.text.encode())
