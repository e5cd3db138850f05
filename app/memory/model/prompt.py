"""The layout of a prompt with memories, made from the model's own chat template.

    prefix (shared, encoded once) | memories | tail (the question, then the start of the answer)

A prompt with text (RAG) has the same token ids, with the chunks' text in place of the memories, and
a closed-book prompt has nothing there, so that the three differ in nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

INSTRUCTION = "Answer the question in one short sentence, using only these facts."
CLOSED_INSTRUCTION = "Answer the question in one short sentence."
_MARK = "\u2063"
_FACTS, _QUESTION = f"{_MARK}facts{_MARK}", f"{_MARK}question{_MARK}"


@dataclass(frozen=True)
class Turn:
    """One turn of the dialogue before the question, by the user or by the model."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """The fixed text around memories and question, for one tokenizer."""

    tokenizer: Any
    instruction: str
    prefix_text: str
    middle_text: str
    end_text: str

    @classmethod
    def of(cls, tokenizer: Any, instruction: str = INSTRUCTION) -> "Prompt":
        prefix, rest = _rendered(tokenizer, instruction, ()).split(_FACTS)
        middle, end = rest.split(_QUESTION)
        return cls(tokenizer, instruction, prefix, middle, end)

    @property
    def prefix(self) -> list[int]:
        return self._ids(self.prefix_text)

    def tail(self, question: str, turns: Sequence[Turn] = ()) -> list[int]:
        """Token ids of what follows the memories: the live tokens.

        `turns` is the dialogue before the question, which the chat template must accept.
        """
        middle = self.middle_text
        if turns:
            rendered = _rendered(self.tokenizer, self.instruction, turns)
            middle = rendered.split(_FACTS)[1].split(_QUESTION)[0]
        return self._ids(middle + question.strip() + self.end_text)

    def chunk(self, text: str) -> list[int]:
        """Token ids of one chunk as it stands in the prompt, including the blank line after it."""
        return self._ids(text.strip() + "\n\n")

    def with_text(
        self, chunks: Sequence[Sequence[int]], question: str, turns: Sequence[Turn] = ()
    ) -> list[int]:
        """Token ids of a whole RAG prompt, with the chunks in place of the memories."""
        tail = self.tail(question, turns)
        return [*self.prefix, *(i for chunk in chunks for i in chunk), *tail]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def closed_book(tokenizer: Any, question: str, turns: Sequence[Turn] = ()) -> list[int]:
    """Token ids of a prompt that asks for an answer from the model's weights alone."""
    return Prompt.of(tokenizer, CLOSED_INSTRUCTION).with_text([], question, turns)


def _rendered(tokenizer: Any, instruction: str, turns: Sequence[Turn]) -> str:
    facts = f"{instruction}\n\n{_FACTS}"
    said = [Turn(turn.role, turn.text.replace(_MARK, "")) for turn in turns]
    if not getattr(tokenizer, "chat_template", None):
        before = "".join(
            f"Question: {turn.text}\n" if turn.role == "user" else f"Answer: {turn.text}\n\n"
            for turn in said
        )
        return f"{tokenizer.bos_token or ''}{facts}{before}Question: {_QUESTION}\nAnswer:"
    messages = [{"role": turn.role, "content": turn.text} for turn in said]
    messages.append({"role": "user", "content": _QUESTION})
    first = {"role": "user", "content": facts + messages[0]["content"]}
    try:
        return _template(tokenizer, [{"role": "system", "content": facts}, *messages])
    except Exception:  # each template refuses a system role in its own way (Gemma, Mistral)
        return _template(tokenizer, [first, *messages[1:]])


def _template(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if text.count(_FACTS) != 1 or text.count(_QUESTION) != 1:
        raise ValueError("the chat template changes or drops the messages' text")
    return text
