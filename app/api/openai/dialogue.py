"""Messages as OpenAI's clients send them -> a question and the dialogue before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Tag

from app.api.http.fields import Text
from app.errors import UsageError
from app.memory.model.prompt import Turn

_AROUND = 8
"""Tokens that a chat template puts around a turn, at most."""
_LONGEST = 1024
"""Tokens of the turns that are read: each costs time before the answer's first."""


class TextPart(BaseModel):
    """A part of a message. Only text is taken."""

    type: Literal["text"]
    text: Text


def _kind(content: object) -> str:
    return "parts" if isinstance(content, list) else "text"


class Message(BaseModel):
    """What one of a dialogue said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text | None, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
        Discriminator(_kind),
    ] = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content).strip()
        return (self.content or "").strip()


@dataclass(frozen=True)
class Dialogue:
    """A question, what was said before it, and what the model is told to keep to."""

    question: str
    turns: tuple[Turn, ...]
    instruction: str

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Dialogue":
        """What follows another message of the same role is a part of it.

        The texts of system and developer messages are the instruction, wherever they stand. What an
        assistant said before the first question is left out, as are empty messages. Raises
        UsageError when the last message is not the user's.
        """
        said = [message for message in messages if message.text]
        told = [one.text for one in said if one.role in ("system", "developer")]
        turns = []
        spoken = [one for one in said if one.role in ("user", "assistant")]
        for role, some in groupby(spoken, key=lambda one: one.role):
            text = "\n\n".join(one.text for one in some)
            if role == "user":
                turns.append(Turn("user", text))
            elif turns:
                turns.append(Turn("assistant", text))
        if not turns or turns[-1].role != "user":
            raise UsageError("the last message must be the user's question, with text in it")
        return cls(turns[-1].text, tuple(turns[:-1]), "\n\n".join(told))

    def fitting(self, room: int, count: Callable[[str], int]) -> "Dialogue":
        """The same without its oldest turns, where all would need more than `room` tokens, or the
        turns alone more than are read."""
        left = room - count(self.instruction) - count(self.question) - 2 * _AROUND
        left = min(left, _LONGEST)
        first = len(self.turns)
        while first:
            left -= sum(count(turn.text) + _AROUND for turn in self.turns[first - 2 : first])
            if left < 0:
                break
            first -= 2
        return Dialogue(self.question, self.turns[first:], self.instruction)
