"""Random questions of random people over random lists, against a plain model of the rights.

Searches and answers go through the real service's code with its warm caches, in the real database;
between them lists and groups change. The model knows neither SQL nor policies: it says which
documents a person may read, and exactly min(k, those) must come, of those alone.
"""

import argparse
import random
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from app.answer.ask import ask
from app.answer.cache import cache
from app.answer.retrieval import Reader, find
from app.demo.sample import temporary_stack
from app.ingest.command import run as ingest
from app.runtime.identity import profile
from tests.edges import (
    add_bank,
    add_principal,
    add_tenant,
    find_bank,
    join_group,
    leave_group,
    set_access,
)

TENANTS = ("rights-a", "rights-b", "rights-c")
PEOPLE = ("ann", "bo", "cy", "dee", "eve")
GROUPS = ("hr", "law", "ops")
ENTRIES = ("everyone", *(f"group:{g}" for g in GROUPS), *(f"principal:{p}" for p in PEOPLE))
TOPICS = ("leave", "notice", "salary", "parking", "laptops", "travel", "training", "sickness")
_DOCUMENTS, _BANK = 24, "handbook"


@dataclass
class Outcome:
    """What a run did, and every difference between the bank and the model."""

    seed: str
    done: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    cache_hits: int = 0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        return [
            f"seed {self.seed}: {done}; {self.empty} of them find nothing that may be read;"
            f" {self.cache_hits} memories from warm caches",
            f"{len(self.faults)} differences",
            *(f"FAULT: {fault}" for fault in self.faults[:50]),
        ]


@dataclass
class Company:
    """One tenant: the lists of its documents and the groups of its people."""

    name: str
    lists: dict[str, list[str]] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=lambda: {p: set() for p in PEOPLE})

    def fill(self, chance: random.Random, folder: Path) -> None:
        """The same texts in every company, but for its name."""
        add_tenant(self.name)
        add_bank(self.name, _BANK, profile().id, profile().json())
        for person in PEOPLE:
            add_principal(self.name, person, list(GROUPS))  # so that every group is there
            for group in GROUPS:
                leave_group(self.name, group, person)
        for number in range(_DOCUMENTS):
            topic = TOPICS[number % len(TOPICS)]
            file = folder / f"{topic}-{number}.md"
            file.write_text(
                f"# {topic.title()}\n\nAt {self.name}, rule {number} of {topic} holds.\n"
            )
        report = ingest([folder], self.name, _BANK, None, False, True)
        for document in report.documents:
            self.lists[document.id] = ["everyone"]
        for document_id in self.lists:
            self.change_list(chance, document_id)

    def readable(self, person: str) -> set[str]:
        names = {"everyone", f"principal:{person}", *(f"group:{g}" for g in self.members[person])}
        return {document for document, list_ in self.lists.items() if names & set(list_)}

    def change(self, chance: random.Random) -> None:
        """A list or a membership becomes another."""
        if chance.random() < 0.6:
            self.change_list(chance, chance.choice(sorted(self.lists)))
            return
        person, group = chance.choice(PEOPLE), chance.choice(GROUPS)
        change = leave_group if group in self.members[person] else join_group
        change(self.name, group, person)
        self.members[person] ^= {group}

    def change_list(self, chance: random.Random, document: str) -> None:
        self.lists[document] = chance.sample(ENTRIES, chance.choice((0, 1, 1, 2)))
        bank = find_bank(self.name, _BANK)
        set_access(bank.tenant, bank.id, document, self.lists[document])


def run(questions: int, seed: str, tell: Callable[[str], None] = print) -> Outcome:
    """Ask so many questions, a third of them for an answer. The seed repeats the run."""
    outcome, chance = Outcome(seed), random.Random(seed)
    with temporary_stack(tell) as _, TemporaryDirectory() as folder:
        companies = [Company(name) for name in TENANTS]
        for company in companies:
            place = Path(folder) / company.name
            place.mkdir()
            company.fill(chance, place)
        for number in range(questions):
            company = chance.choice(companies)
            if chance.random() < 0.2:
                company.change(chance)
                outcome.done["changes"] += 1
            _question(company, chance, outcome)
            if (number + 1) % 500 == 0:
                tell(f"{number + 1} of {questions}; {len(outcome.faults)} differences")
        outcome.cache_hits = cache().stats()["memory"]["hits"]
    return outcome


def _question(company: Company, chance: random.Random, outcome: Outcome) -> None:
    person, k = chance.choice(PEOPLE), chance.choice((1, 3, 10))
    reader = Reader.of(company.name, _BANK, person)
    words = f"Which rule of {chance.choice(TOPICS)} holds?"
    right = company.readable(person)
    if chance.random() < 1 / 3:
        kind = "answers"
        answer = ask(reader, words, k=k, least=-1.0, max_tokens=1)
        found = [(one.document_id, one.text) for one in answer.memories]
    else:
        kind = "searches"
        found = [(one.document_id, one.text) for one in find(reader, words, k).passages]
    outcome.done[kind] += 1
    outcome.empty += not right
    documents = [document for document, _ in found]
    asked = f"{company.name} {person} {words!r} k={k} ({kind})"
    if strange := set(documents) - right:
        outcome.faults.append(f"{asked} brings {sorted(strange)}")
    if len(set(documents)) != min(k, len(right)):
        outcome.faults.append(f"{asked} brings {len(documents)} of {len(right)} documents")
    if wrong := [text for _, text in found if f"At {company.name}," not in text]:
        outcome.faults.append(f"{asked} brings {wrong}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    given = parser.parse_args()
    outcome = run(given.questions, given.seed)
    print("\n".join(outcome.lines()))
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
