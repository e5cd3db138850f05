"""Questions answered in any mode as users get them: by the engine, with the decoder it takes."""

from collections.abc import Callable, Iterator, Sequence

from app.answer import question
from app.answer.engine import Engine, Job
from app.evaluation.memories import MemoryStore
from app.evaluation.plan import Plan
from app.evaluation.questions import Question
from app.evaluation.retrieval import Retrieved
from app.memory.compose import Memories, compose
from app.memory.decode.generate import Wanted
from app.memory.kv import KV
from app.memory.model.prompt import closed_book
from app.runtime.models import Mode, Models, adapted

_ROWS, _ROWS_TIMES_K = 32, 96
"""Of a batch: questions, and memories of all of them."""


class Answerer:
    """Reads questions from what was found for them. Close it at the end."""

    def __init__(self, m: Models, store: MemoryStore, plan: Plan) -> None:
        self._m, self._store, self._plan = m, store, plan
        self._engine = Engine(_ROWS)

    def close(self) -> None:
        self._engine.close()

    def answers(
        self, mode: Mode, ks: Sequence[int], asked: Sequence[tuple[Question, Retrieved]]
    ) -> Iterator[tuple[int, Question, str]]:
        """k, question and answer, for each k. Texts are read once for all numbers of them."""
        for start in range(0, len(asked), _ROWS):
            some = asked[start : start + _ROWS]
            texts = self._texts([found for _, found in some], max(ks)) if mode == "rag" else None
            for k in ks:
                yield from self._answers(mode, k, some, texts)

    def _answers(
        self,
        mode: Mode,
        k: int,
        asked: Sequence[tuple[Question, Retrieved]],
        texts: Sequence[Callable[[int], KV]] | None,
    ) -> Iterator[tuple[int, Question, str]]:
        size = max(1, min(_ROWS, _ROWS_TIMES_K // max(1, k)))
        for start in range(0, len(asked), size):
            some = asked[start : start + size]
            if texts is None:
                read = [self.memories(mode, found, k) for _, found in some]
            else:
                read = [self._composed([cut(k)]) for cut in texts[start : start + size]]
            questions = [one for one, _ in some]
            for one, answer in zip(questions, self.said(mode, questions, read), strict=True):
                yield k, one, answer

    def said(
        self, mode: Mode, questions: Sequence[Question], read: Sequence[Memories | None]
    ) -> list[str]:
        """Each question's greedy answer from its memories, all in one batch."""
        most = self._plan.max_tokens
        jobs = [self.begin(mode, q, m, most) for q, m in zip(questions, read, strict=True)]
        return ["".join(job) for job in jobs]

    def begin(self, mode: Mode, asked: Question, read: Memories | None, most: int) -> Job:
        """Begin an answer of at most so many tokens."""
        if mode == "closed":
            prompt = closed_book(self._m.lm.tokenizer, asked.question)
        else:
            prompt = self._m.prompt.tail(asked.question)
        of = question.Question(asked.question, mode=mode, adapter=self._plan.adapter)
        return self._engine(of, Wanted(prompt, most, read), 0)

    def memories(self, mode: Mode, found: Retrieved, k: int) -> Memories | None:
        """What is in front of a question: k memories, k texts as one, or nothing."""
        if mode == "closed":
            return None
        if mode == "rag":
            [cut] = self._texts([found], k)
            return self._composed([cut(k)])
        memories = self._composed([self._store.load(text) for text in found.texts[:k]])
        adapter = adapted(mode, self._plan.adapter).adapter
        if adapter is None or k == 1:
            return memories
        return memories.preferring(adapter.gains([list(found.relevances[:k])]))

    def _composed(self, row: Sequence[KV]) -> Memories:
        return compose([row], self._m.lm.rotary, self._m.encoder.prefix)

    def _texts(self, read: Sequence[Retrieved], most: int) -> list[Callable[[int], KV]]:
        """The first k texts of each as one dense memory, which gives the logits of a prompt that
        has them.

        A text does not see what comes after it, so the first of them are the beginning of all.
        """
        chunks = [[self._m.prompt.chunk(text) for text in found.texts[:most]] for found in read]
        whole = self._m.encoder.encode([[i for c in row for i in c] for row in chunks])

        def cut(kv: KV, lengths: list[int]) -> Callable[[int], KV]:
            def first(k: int) -> KV:
                end = sum(lengths[:k])
                return KV(kv.keys[:, :, :end], kv.values[:, :, :end])

            return first

        return [cut(kv, [len(c) for c in row]) for kv, row in zip(whole, chunks, strict=True)]
