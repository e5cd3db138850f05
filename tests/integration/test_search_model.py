"""Search against a plain model of rights and order, while lists, groups and texts change.

The model knows neither SQL nor policies: dictionaries, a loop, and search/rank.py alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from app.bank.documents import Draft
from app.bank.filters import Comparison, Compound, Filter
from app.db.session import Asker
from app.search import nearest
from app.search.indexes import keep
from app.search.rank import POOL, best
from app.search.search import search
from tests.conftest import PROFILE, Company, administer, ask, pieces_of, work_off
from tests.edges import join_group, leave_group, set_access, store

VOCABULARY = ["leave", "days", "notice", "salary", "error", "E4711", "office", "dog", "hotel"]
GROUPS = ("hr", "law", "ops")
PEOPLE = ("ann", "bo", "cy", "dee")
ENTRIES = ["everyone", *(f"group:{g}" for g in GROUPS), *(f"principal:{p}" for p in PEOPLE)]
EQUAL = 1e-6
"""Cosines that differ by less are equal: the database computes them in another order."""


@pytest.fixture
def database(own_database: str) -> str:
    """Its own, since indexes are made in it."""
    return own_database


def vector_of(text: str) -> list[float]:
    """A direction that follows from a text, as an embedder gives one."""
    values = np.random.default_rng(list(text.encode())).normal(size=8)
    return (values / np.linalg.norm(values)).astype(np.float16).astype(float).tolist()


@dataclass
class Model:
    """What a company has, and what a search has to bring."""

    company: Company
    chance: random.Random
    lists: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    members: dict[str, set[str]] = field(default_factory=lambda: {p: set() for p in PEOPLE})
    numbers: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def fill(self, documents: int) -> None:
        for number in range(documents):
            texts = [self._text() for _ in range(self.chance.randint(1, 5))]
            self._store(f"d{number}", list(dict.fromkeys(texts)))
        self.encode()

    def encode(self) -> None:
        """Let a worker do what is due; then nothing is stale."""
        every = {text: vector_of(text) for texts in self.texts.values() for text in texts}
        work_off(every)
        self.stale.clear()
        self.numbers.clear()
        for document, text, chunk in ask(
            Asker("admin"),
            "SELECT document_id, text, id FROM chunk WHERE tenant_id = :t ORDER BY id",
            t=self.company.tenant,
        ):
            self.numbers.setdefault((document, text), []).append(chunk)

    def change(self) -> None:
        """One list, group or text becomes another."""
        document = self.chance.choice(sorted(self.texts))
        what = self.chance.choice(("list", "list", "group", "text"))
        if what == "list":
            self.lists[document] = self._list()
            set_access(self.company.tenant, self.company.bank.id, document, self.lists[document])
        elif what == "group":
            person, group = self.chance.choice(PEOPLE), self.chance.choice(GROUPS)
            if group in self.members[person]:
                leave_group(self.company.name, group, person)
            else:
                join_group(self.company.name, group, person)
            self.members[person] ^= {group}
        else:
            self.texts[document] = [self._text()]
            administer(
                "UPDATE document SET text = :text WHERE tenant_id = :t AND id = :d",
                text=self.texts[document][0],
                t=self.company.tenant,
                d=document,
            )
            self.stale.add(document)

    def readable(self, person: str, where: Filter | None) -> dict[int, tuple[str, str]]:
        """Document and text by chunk, of all that a person may find."""
        names = {"everyone", f"principal:{person}", *(f"group:{g}" for g in self.members[person])}
        return {
            chunk: (document, text)
            for (document, text), chunks in self.numbers.items()
            if document not in self.stale
            and names & set(self.lists[document])
            and (where is None or fits(self.metadata[document], where))
            for chunk in chunks
        }

    def expected(self, person: str, question: str, where: Filter | None) -> dict[int, float]:
        """Cosines by chunk, nearest first, of all that a person may find."""
        asked = np.array(vector_of(question))
        cosines = {
            chunk: cosine(asked, np.array(vector_of(text)))
            for chunk, (_, text) in self.readable(person, where).items()
        }
        return dict(sorted(cosines.items(), key=lambda one: (-one[1], one[0])))

    def question(self) -> tuple[str, str, int, Filter | None, float]:
        """Who asks what, for how many, under which condition, and with which least score."""
        c = self.chance
        where = c.choice((None, None, condition(c)))
        least = c.choice((-1.0, -1.0, 0.3))
        return c.choice(PEOPLE), self._text(), c.choice((1, 3, 10, 100)), where, least

    def _store(self, document: str, texts: list[str]) -> None:
        self.lists[document], self.texts[document] = self._list(), texts
        self.metadata[document] = {
            "year": self.chance.randint(2019, 2025),
            "team": self.chance.choice(GROUPS),
            "open": self.chance.random() < 0.5,
        } | ({"tags": self.chance.sample(GROUPS, 2)} if self.chance.random() < 0.5 else {})
        body = "\n\n".join(texts)
        draft = Draft(document, document, "t", body, self.lists[document], self.metadata[document])
        store(self.company.tenant, self.company.bank.id, draft, pieces_of(body))

    def _list(self) -> list[str]:
        return self.chance.sample(ENTRIES[self.chance.choice((0, 1)) :], self.chance.randint(0, 2))

    def _text(self) -> str:
        return " ".join(self.chance.choices(VOCABULARY, k=self.chance.randint(1, 4)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def condition(chance: random.Random) -> Filter:
    some: list[Filter] = [
        Comparison("eq", "team", (chance.choice(GROUPS),)),
        Comparison("in", "tags", (chance.choice(GROUPS), "none")),
        Comparison(chance.choice(("gt", "gte", "lt", "lte")), "year", (2022,)),
        Comparison("eq", "open", (chance.random() < 0.5,)),
        Comparison("eq", "year", ("2022",)),
    ]
    chosen = chance.sample(some, 2)
    return chance.choice((chosen[0], Compound(chance.choice(("and", "or")), tuple(chosen))))


def fits(metadata: dict[str, Any], where: Filter) -> bool:
    if isinstance(where, Compound):
        return (all if where.type == "and" else any)(fits(metadata, f) for f in where.filters)
    if where.key not in metadata:
        return False
    value, given = metadata[where.key], where.values[0]
    if where.type in ("eq", "in"):
        held = value if isinstance(value, list) else [value]
        return any(type(h) is type(v) and h == v for h in held for v in where.values)
    assert isinstance(value, int)
    assert isinstance(given, int)
    return {
        "gt": value > given,
        "gte": value >= given,
        "lt": value < given,
        "lte": value <= given,
    }[where.type]


@pytest.fixture
def model(company: Company, new_company: Callable[[str], Company]) -> Model:
    other = Model(new_company("northwind"), random.Random(5))
    for each in ("harbor", "northwind"):
        for person in PEOPLE:
            (company if each == "harbor" else other.company).reader(person)
    other.fill(40)
    model = Model(company, random.Random(4))
    for person in PEOPLE:
        for group in GROUPS:
            company.reader(person, group)
            leave_group(company.name, group, person)
    model.fill(60)
    return model


def asked(
    model: Model, person: str, question: str, k: int, where: Filter | None, least: float, words: str
) -> list[tuple[int, float]]:
    asker = model.company.reader(person)
    vector = vector_of(question)
    found = search(asker, model.company.bank.id, PROFILE, vector, k, words, least, where)
    return [(p.id, p.score) for p in found]


def answer(
    cosines: dict[int, float], texts: dict[int, str], k: int, least: float, words: str
) -> list[int]:
    """The chunks that a search brings, of the readable ones, nearest first."""
    size = max(k, POOL)
    while True:
        pool = [chunk for chunk in list(cosines)[:size] if cosines[chunk] >= least]
        order = best(words, [texts[c] for c in pool], [cosines[c] for c in pool], k)
        if len(order) == k or len(pool) < size:
            return [pool[one.index] for one in order]
        size *= 4


@pytest.mark.timeout(600)
def test_a_thousand_questions_bring_what_the_model_brings(model: Model) -> None:
    for turn in range(40):
        for _ in range(25):
            person, question, k, where, least = model.question()
            words = question if turn % 2 else ""
            right = model.expected(person, question, where)
            readable = model.readable(person, where)
            chosen = answer(right, {c: t for c, (_, t) in readable.items()}, k, least, words)
            found = asked(model, person, question, k, where, least, words)
            assert len(found) == len(chosen)
            assert [s for _, s in found] == pytest.approx([right[c] for c in chosen], abs=EQUAL)
            if not words:
                assert [c for c, _ in found] == chosen
        model.change()
        if turn % 5 == 4:
            model.encode()


@pytest.mark.timeout(600)
def test_with_an_index_no_row_is_missing_or_forbidden_and_nearly_all_are_the_nearest(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(50)
    assert len(kept.made) == 2
    monkeypatch.setattr(nearest, "_REMEMBERED", 0.5)
    ways: list[str] = []
    run = nearest.Nearest._run

    def told(self: nearest.Nearest, connection: Any, way: nearest.Way, size: int) -> Any:
        ways.append(way)
        return run(self, connection, way, size)

    monkeypatch.setattr(nearest.Nearest, "_run", told)
    hits = total = 0
    for turn in range(40):
        for _ in range(25):
            person, question, k, where, least = model.question()
            right = model.expected(person, question, where)
            allowed = model.readable(person, where)
            texts = dict.fromkeys(allowed[c][1] for c, s in right.items() if s >= least)
            found = asked(model, person, question, k, where, least, "")
            assert {c for c, _ in found} <= set(allowed)
            assert len(found) == min(k, len(texts))
            assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
            wanted = list(texts)[:k]
            hits += len({allowed[c][1] for c, _ in found} & set(wanted))
            total += len(wanted)
        model.change()
        if turn % 5 == 4:
            model.encode()
    assert hits >= 0.99 * total > 0
    assert {"index", "documents"} <= set(ways)
    assert "all" not in ways


def test_the_pool_grows_past_copies_of_one_text(company: Company) -> None:
    alice = company.reader("alice")
    copies = 3 * POOL
    for number in range(copies):
        company.store(f"copy{number}", "the same words")
    company.store("other", "something else\n\nand a third thing")
    work_off({"the same words": (1.0, 0.0, 0.0), "something else": (0.0, 1.0, 0.0)})
    for words in ("", "which words"):
        found = search(alice, company.bank.id, PROFILE, (1.0, 0.1, 0.0), 3, words)
        assert {p.text for p in found} == {"the same words", "something else", "and a third thing"}
