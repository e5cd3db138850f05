"""`membank demo`: the main job on sample handbooks, each step checked as it is shown."""

from app.answer.ask import NOTHING, Answer, ask
from app.answer.retrieval import Reader
from app.db.session import Asker, transaction
from app.demo.sample import BANK, TENANTS, Question, fill, questions, temporary_stack, update
from app.errors import MembankError
from app.local.processes import wait_until
from app.process import console
from app.queue import status
from app.runtime.models import models
from benchmarks.ttft import measure, report

# Those that the untrained 135M model reads right in both handbooks; `membank eval` is for scores.
_SHOWN = ("sick-leave.md", "health-insurance.md", "visitor-badges.md")


class _Steps:
    """Prints what happens, remembers what did not hold."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def head(self, text: str) -> None:
        console.say(f"\n{text}")

    def show(self, who: str, question: str, answer: Answer) -> None:
        console.say(f"  {who} asks: {question}")
        console.say(f"    {answer.answer}")
        for memory in answer.memories:
            name = memory.source.rsplit("/", 1)[-1]
            console.say(f"    source: {memory.title} ({name}), score {memory.score:.2f}")

    def check(self, holds: bool, claim: str) -> None:
        console.say(f"    {'yes' if holds else 'NO '}: {claim}")
        if not holds:
            self.failures.append(claim)


def run() -> int:
    """0 when every step gave what it shows, else 1."""
    steps = _Steps()
    by_file = {q.file: q for q in questions()}
    with temporary_stack(lambda line: console.say(f"  {line}")):
        steps.head("Two tenants, their handbooks through the queue")
        memories = fill()
        steps.check(memories == 42, f"{memories} memories for 42 documents")
        models()
        _own_banks(steps, by_file)
        _access_list(steps, by_file["salary-bands.md"])
        _sql_edit(steps)
        _table(steps)
    if steps.failures:
        raise MembankError("the demo did not hold: " + "; ".join(steps.failures))
    console.say("\nEverything shown held.")
    return 0


def _own_banks(steps: _Steps, by_file: dict[str, Question]) -> None:
    steps.head("1. The same question, each tenant's own bank")
    for question in (by_file[name] for name in _SHOWN):
        for tenant in TENANTS:
            answer = ask(Reader.of(tenant, BANK, "alice"), question.question)
            steps.show(f"alice of {tenant}", question.question, answer)
            own = any(right in answer.answer for right in question.answers[tenant])
            steps.check(own, f"{tenant}'s own fact, {question.answers[tenant][0]}")
            steps.check(
                [m.source.rsplit("/", 2)[-2:] for m in answer.memories]
                == [[tenant, question.file]],
                f"its source is {tenant}'s {question.file}",
            )


def _access_list(steps: _Steps, secret: Question) -> None:
    steps.head("2. A source that only the group hr may read")
    fact = secret.answers["northwind"]
    allowed = ask(Reader.of("northwind", BANK, "hana"), secret.question)
    steps.show("hana of hr", secret.question, allowed)
    steps.check(any(right in allowed.answer for right in fact), f"hana reads {fact[0]}")
    refused = ask(Reader.of("northwind", BANK, "alice"), secret.question)
    steps.show("alice", secret.question, refused)
    steps.check(refused.answer == NOTHING and not refused.memories, "alice is told of nothing")
    steps.check(not any(right in str(refused) for right in fact), "nothing of the text appears")


def _sql_edit(steps: _Steps) -> None:
    steps.head("3. An administrator's UPDATE in SQL")
    change = update()
    reader = Reader.of(change.tenant, BANK, "alice")
    before = ask(reader, change.question)
    steps.show("alice", change.question, before)
    # A short answer leaves out the unit.
    old, new = change.old.split()[0], change.new.split()[0]
    steps.check(old in before.answer, f"before: {change.old}")
    statement = "UPDATE document SET text = replace(text, %s, %s) WHERE source LIKE %s"
    console.say(
        f"  {statement.replace('%s', '{}')}".format(
            repr(change.old), repr(change.new), repr(f"%/{change.tenant}/{change.file}")
        )
    )
    with transaction(Asker("admin")) as connection:
        connection.exec_driver_sql(
            statement, (change.old, change.new, f"%/{change.tenant}/{change.file}")
        )
    done = wait_until(_idle, 60)
    steps.check(done, "the worker has encoded it again")
    after = ask(reader, change.question)
    steps.show("alice", change.question, after)
    steps.check(new in after.answer and old not in after.answer, f"after: {change.new}")


def _idle() -> bool:
    with transaction(Asker("admin")) as connection:
        return not any(status.queue(connection).values())


def _table(steps: _Steps) -> None:
    steps.head("4. Time to first token and tokens processed, the same questions")
    asked = [q.question for q in questions() if q.group is None][:10]
    rows = measure(Reader.of("northwind", BANK, "alice"), asked, 5)
    report({5: rows}, len(asked))
    steps.check(
        rows["memory"].first_token_ms < rows["rag"].first_token_ms,
        "memory's first token comes before RAG's",
    )
