"""Thousands of calls of every kind to the HTTP service: none fails, each is as it is described."""

import argparse
import contextlib
import random
import secrets
import sys
from collections.abc import Callable, Iterator

import httpx
from schemathesis import Case

from app.access.keys import Issued
from app.answer.engine import Engine
from app.api.application import create
from app.bank.find import Bank
from app.bank.roles import BankRole
from app.demo import sample
from app.process.log import configure
from app.runtime.models import generator
from tests.edges import find_bank, grant, issue
from tests.long.fuzz.calls import Caller, Seen
from tests.long.fuzz.known import Known
from tests.serving import served

PRINCIPAL = "hana"
_SUCCEED = ("POST /v1/files", "POST /v1/chat/completions", "POST /v1/membank/erasure")
"""Routes of which at least one call must succeed, or the calls are not worth much."""
_FILES = {
    "dogs.md": b"# Dogs\n\nDogs may come on Friday.\n\n## Cats\n\nCats may not.\n",
    "rows.jsonl": b'{"id": "row", "text": "A row.", "metadata": {"n": 1}}\n{"text": "Another."}\n',
    "broken.pdf": b"%PDF-1.7 and no more",
    "unknown.bin": bytes(range(256)),
    "empty.txt": b"",
}


def run(
    tenant: str,
    bank: str,
    calls: int,
    seed: int,
    clients: int = 1,
    tell: Callable[[str], None] = print,
) -> Seen:
    """Serve, and call in the name of a principal that may do everything; its bank and its tenant go
    last."""
    found = find_bank(tenant, bank)
    grant(found, f"principal:{PRINCIPAL}", BankRole.ADMIN)
    own = issue(tenant, PRINCIPAL, ("read", "write", "admin"))
    known = Known(
        random.Random(seed),
        model=[bank, f"{bank}@none"],
        bank=[bank],
        vector_store_id=[f"vs_{found.id}"],
        name=["alice", PRINCIPAL],
        group=["hr"],
        entry=["principal:alice", "group:hr"],
        access=["everyone", "principal:alice", "group:hr"],
        key=[issue(tenant, "alice").id],
    )
    with _serving() as url:
        _begin(url, own.token, found, known)
        caller = Caller(url, own.token, known)
        caller.calls(
            calls, seed, lambda case: _ends_the_run(case, tenant, found, own), clients, tell
        )
        store = caller.schema["/v1/vector_stores/{vector_store_id}"]["DELETE"]
        caller.call(store.Case(path_parameters={"vector_store_id": f"vs_{found.id}"}))
        erasure = caller.schema["/v1/membank/erasure"]["POST"]
        caller.call(erasure.Case(body={"tenant": tenant}, media_type="application/json"))
        caller.judge(_SUCCEED)
    return caller.seen


def _begin(url: str, key: str, bank: Bank, known: Known) -> None:
    """Upload files of all kinds, and know the documents of the bank."""
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        for name, content in _FILES.items():
            form = {"purpose": "assistants"}
            known.learn(
                http.post(f"{url}/v1/files", files={"file": (name, content)}, data=form).json()
            )
        search = {"query": "annual leave", "max_num_results": 20}
        known.learn(http.post(f"{url}/v1/vector_stores/vs_{bank.id}/search", json=search).json())
        known.learn(http.get(f"{url}/v1/vector_stores/vs_{bank.id}/files").json())


def _ends_the_run(case: Case, tenant: str, bank: Bank, own: Issued) -> bool:
    named = {str(one) for one in case.path_parameters.values()}
    if case.path.endswith("/erasure"):
        return isinstance(case.body, dict) and case.body.get("tenant") == tenant
    if case.path.endswith("/{vector_store_id}"):
        # It can be renamed as well.
        return f"vs_{bank.id}" in named and case.method.upper() != "GET"
    mine = {own.id, PRINCIPAL, f"principal:{PRINCIPAL}"}
    return bool(named & mine) and case.method.upper() in ("DELETE", "PUT")


@contextlib.contextmanager
def _serving() -> Iterator[str]:
    generator("memory")
    engine = Engine()
    try:
        with served(create(engine)) as url:
            yield url
    finally:
        engine.close()


def run_alone(calls: int, seed: int, clients: int, tell: Callable[[str], None] = print) -> Seen:
    """The same with the sample handbooks, in servers of its own."""
    with sample.temporary_stack(tell) as stack:
        sample.fill()
        for name in ("relay", "worker"):  # what the calls store need not be encoded
            stack.processes.stop(name)
        return run(sample.TENANTS[0], sample.BANK, calls, seed, clients, tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=1, help="more than one: in no fixed order")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    given = parser.parse_args()
    configure("WARNING")
    print(f"seed {given.seed}")
    seen = run_alone(given.calls, given.seed, given.clients)
    print("\n".join(seen.lines()))
    sys.exit(bool(seen.faults))


if __name__ == "__main__":
    main()
