"""The worker's loop with an encoder that fails on purpose: nothing lost, nobody held up."""

import signal
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import pytest
from celery.signals import worker_shutting_down

from app.bank.roles import BankRole
from app.db.session import Asker
from app.errors import UnavailableError
from app.queue import outbox
from app.queue.encoding import chunk_texts, finish_encoding
from app.queue.outbox import Work
from app.settings import settings
from tests import edges
from tests.conftest import PROFILE, Company, administer, ask, change, encoded
from tests.conftest import split as split_one
from tests.edges import grant


@pytest.fixture
def tasks(database: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The worker's module, with the profile of the tests and no model."""
    monkeypatch.setenv("MEMBANK_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    import workers.tasks as module

    fake = SimpleNamespace(id=PROFILE, chunk_tokens=128)
    monkeypatch.setattr(module, "profile", lambda: fake)
    monkeypatch.setattr(module, "encode", encode_unless("poison"))
    return module


def text_of(work: Work) -> str | None:
    return chunk_texts(work.tenant, [work]).get(work.chunk or 0)


def encode_unless(poison: str):  # type: ignore[no-untyped-def]
    """An encoder that raises for a batch with a text that holds `poison`."""

    def encode(work: Sequence[Work]) -> int:
        done = 0
        texts = {w.chunk: text_of(w) for w in work}
        if any(body and poison in body for body in texts.values()):
            raise RuntimeError("the encoder cannot take this")
        for one in work:
            if texts[one.chunk] is not None:
                done += finish_encoding(one.tenant, PROFILE, [encoded(one)])
        return done

    return encode


def due_now() -> None:
    administer("UPDATE outbox SET not_before = now()")


def test_files_are_read_when_nothing_else_waits_and_not_for_long(
    company: Company, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, order = company.reader("alice"), []
    grant(company.bank, "principal:alice", BankRole.WRITER)
    put = [edges.upload(alice, f"{n}.md", "assistants", b"The door is blue.").id for n in range(4)]
    edges.attach(alice, company.bank.id, [(id, {}) for id in put])
    company.store("rules", "one rule")

    def store(work: Sequence[Work]) -> int:
        order.append(work[0].file)
        return int(edges.finish(work[0]))

    def encode(work: Sequence[Work]) -> int:
        order.append("chunks")
        return encode_unless("poison")(work)

    monkeypatch.setattr(tasks, "store", store)
    monkeypatch.setattr(tasks, "encode", encode)
    monkeypatch.setattr(tasks, "_READING_SECONDS", -1.0)
    for number in range(2):
        held = outbox.claim(PROFILE, 100, 60.0)
        tasks._process(held)
        assert order == ["chunks", *put[: number + 1]]
    left = ask(Asker("worker", company.tenant), "SELECT attempts, lease_token FROM outbox")
    assert left == [(0, None)] * 2
    monkeypatch.setattr(tasks, "_READING_SECONDS", 60.0)
    assert tasks.drain() == 2
    assert order == ["chunks", *put]


def test_one_poisonous_chunk_is_buried_with_its_reason_and_the_rest_is_done(
    company: Company, tasks: ModuleType
) -> None:
    company.store("rules", "\n\n".join([*(f"rule {i}" for i in range(9)), "poison", "last rule"]))
    for _ in range(settings().max_attempts):
        tasks.drain()
        due_now()
    assert ask(Asker("admin"), "SELECT count(*) FROM memory_blob") == [(10,)]
    assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(0,)]
    ((error, attempts, where, body),) = ask(
        Asker("admin"),
        "SELECT l.error, l.attempts, l.traceback, c.text FROM dead_letter l JOIN chunk c"
        " ON c.tenant_id = l.tenant_id AND c.id = l.chunk_id",
    )
    assert error == "RuntimeError: the encoder cannot take this"
    assert attempts == settings().max_attempts
    assert body == "poison"
    assert where.startswith("Traceback (most recent call last):")
    assert where.endswith(
        'in encode\n    raise RuntimeError("the encoder cannot take this")\n'
        "RuntimeError: the encoder cannot take this\n"
    )


def test_everything_but_the_poison_is_done_at_the_first_attempt(
    company: Company, tasks: ModuleType
) -> None:
    company.store("rules", "\n\n".join(["poison", *(f"rule {i}" for i in range(20))]))
    assert tasks.drain() == 20


def test_a_chunk_that_kills_its_worker_each_time_is_buried(
    company: Company, tasks: ModuleType
) -> None:
    company.store("rules", "one rule")
    for _ in range(settings().max_attempts):  # claimed, then the process is gone
        assert len(outbox.claim(PROFILE, 10, 30)) == 1
        administer("UPDATE outbox SET lease_until = now() - interval '1 second'")
    tasks.drain()
    ((error,),) = ask(Asker("admin"), "SELECT error FROM dead_letter")
    assert "worker died on every attempt" in error
    assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(0,)]


def test_the_neighbours_of_a_chunk_that_kills_its_worker_are_not_blamed(
    company: Company, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Ends the process: nothing in the worker may catch it."""

    honest = tasks.encode

    def deadly(work: Sequence[Work]) -> int:
        if any(text_of(w) == "killer" for w in work):
            raise Killed
        return int(honest(work))

    monkeypatch.setattr(tasks, "encode", deadly)
    company.store("rules", "\n\n".join([*(f"rule {i}" for i in range(5)), "killer", "a", "b"]))
    deaths = 0
    while ask(Asker("admin"), "SELECT count(*) FROM outbox") != [(0,)]:
        try:
            tasks.drain()
        except Killed:
            deaths += 1
        administer(
            "UPDATE outbox SET lease_until = now() - interval '1 second', not_before = now()"
        )
    assert deaths == settings().max_attempts
    assert ask(Asker("admin"), "SELECT count(*) FROM memory_blob") == [(7,)]
    ((body,),) = ask(
        Asker("admin"), "SELECT c.text FROM dead_letter l JOIN chunk c ON c.id = l.chunk_id"
    )
    assert body == "killer"


def test_a_failure_that_passes_is_tried_again(
    company: Company, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    company.store("rules", "poison for now")
    assert tasks.drain() == 0
    ((error, attempts),) = ask(Asker("admin"), "SELECT last_error, attempts FROM outbox")
    assert (error, attempts) == ("RuntimeError: the encoder cannot take this", 1)
    monkeypatch.setattr(tasks, "encode", encode_unless("nothing"))
    due_now()
    assert tasks.drain() == 1


def test_a_database_that_goes_away_ends_the_task_and_blames_no_work(
    company: Company, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(work: Sequence[Work]) -> int:
        raise UnavailableError("Postgres does not answer")

    company.store("rules", "a rule")
    monkeypatch.setattr(tasks, "encode", away)
    assert tasks.drain() == 0
    assert ask(Asker("admin"), "SELECT last_error FROM outbox") == [(None,)]


def test_a_worker_that_is_told_to_stop_takes_nothing_more(
    company: Company, tasks: ModuleType
) -> None:
    company.store("rules", "a rule")
    tasks.stopping.set()
    try:
        assert tasks.drain() == 0
    finally:
        tasks.stopping.clear()
    assert ask(Asker("admin"), "SELECT attempts FROM outbox") == [(0,)]


def test_a_worker_that_is_told_to_stop_in_a_batch_finishes_the_step_and_hands_the_rest_back(
    company: Company, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two splits, a batch of chunks and one that failed before are held when SIGTERM comes."""
    company.store("tried", "failed before")
    [tried] = outbox.claim(PROFILE, 10, 60)
    outbox.fail(tried, "for now", 9)
    due_now()
    company.store("rules", "a rule\n\nanother")
    for name in ("a", "b"):
        company.store(name, "old")
        administer("DELETE FROM outbox WHERE document_id = :id", id=name)
        administer("UPDATE document SET text = 'new' WHERE id = :id", id=name)
    begun: list[str] = []

    def split(work: Sequence[Work]) -> int:
        begun.extend(w.document for w in work)
        signal.raise_signal(signal.SIGTERM)
        return sum(split_one(w) for w in work)

    monkeypatch.setattr(tasks, "split", split)
    before = signal.signal(signal.SIGTERM, lambda *_: worker_shutting_down.send(sender="test"))
    try:
        assert tasks.drain() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
        tasks.stopping.clear()
    assert begun == ["a"]
    held = "SELECT count(*) FROM outbox WHERE lease_token IS NOT NULL"
    assert ask(Asker("admin"), held) == [(0,)]
    left = "SELECT document_id, chunk_id IS NULL, attempts FROM outbox ORDER BY 1, 3, 2"
    assert ask(Asker("admin"), left) == [
        ("a", False, 0),
        ("b", True, 0),
        ("rules", False, 0),
        ("rules", False, 0),
        ("tried", False, 1),
    ]


def test_leases_are_renewed_while_the_model_runs(
    company: Company, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.local.processes import wait_until

    monkeypatch.setenv("MEMBANK_LEASE_SECONDS", "2")
    settings.cache_clear()
    company.store("rules", "a slow rule")

    def slow(work: Sequence[Work]) -> int:
        ((before,),) = ask(Asker("admin"), "SELECT lease_until FROM outbox")
        assert wait_until(
            lambda: ask(Asker("admin"), "SELECT lease_until FROM outbox")[0][0] > before, 60
        )
        return finish_encoding(work[0].tenant, PROFILE, [encoded(work[0])])

    monkeypatch.setattr(tasks, "encode", slow)
    assert tasks.drain() == 1
    assert change(Asker("admin"), "DELETE FROM outbox") == 0
