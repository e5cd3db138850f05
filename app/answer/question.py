"""What is asked, and how it is to be answered."""

from dataclasses import dataclass

from app.answer.retrieval import checked
from app.bank.filters import Filter
from app.errors import UsageError
from app.memory.decode.generate import GREEDY, Sampling
from app.memory.model.prompt import Turn
from app.runtime.models import Mode
from app.settings import settings


@dataclass(frozen=True)
class Question:
    """One question with the dialogue before it. What is None is as the settings say.

    k: memories that are read; least: cosine below which a memory does not count; where: what the
    metadata of the documents must be that it is answered from; stop: texts before the first of
    which the answer ends; adapter: what the model reads with, as MEMBANK_ADAPTER.
    """

    text: str
    turns: tuple[Turn, ...] = ()
    k: int | None = None
    mode: Mode = "memory"
    max_tokens: int = 64
    least: float | None = None
    where: Filter | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    adapter: str | None = None
    instruction: str = ""

    def __post_init__(self) -> None:
        """Raises UsageError for an empty or too long question, or a value out of range."""
        object.__setattr__(self, "text", checked(self.text))
        if self.max_tokens < 1:
            raise UsageError(f"the longest answer is {self.max_tokens} tokens: give at least 1")

    @property
    def threshold(self) -> float:
        return settings().min_score if self.least is None else self.least

    @property
    def told(self) -> str:
        """The question as the model reads it."""
        return f"{self.instruction}\n\n{self.text}" if self.instruction else self.text

    @property
    def searches(self) -> list[str]:
        """Texts to search with: the question, and, where it follows others, it and what was said.

        A question such as "and for how long?" says nothing alone; one that opens another subject
        is only blurred by the old one. What brings the nearer memory is taken.
        """
        before = [turn.text for turn in self.turns[-2:]]
        return [self.text] if not before else [self.text, "\n".join([*before, self.text])]
