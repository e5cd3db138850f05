"""Where memories stand in a prompt, made from the model's own chat template.

    prefix (shared, encoded once) | memories | tail (the question, then the turn of the model)

Text in the prompt (RAG) has the same token ids with the chunks' text in the memories' place, and
closed book has none, so that the three differ in nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INSTRUCTION = "Answer the question in one short sentence, using only these facts."
CLOSED_INSTRUCTION = "Answer the question in one short sentence."
_FACTS, _QUESTION = "\u2063facts\u2063", "\u2063question\u2063"


@dataclass(frozen=True)
class Prompt:
    """The fixed text around memories and question, for one tokenizer."""

    tokenizer: Any
    prefix_text: str
    middle_text: str
    end_text: str

    @classmethod
    def of(cls, tokenizer: Any, instruction: str = INSTRUCTION) -> "Prompt":
        text = _rendered(tokenizer, instruction)
        prefix, rest = text.split(_FACTS)
        middle, end = rest.split(_QUESTION)
        return cls(tokenizer, prefix, middle, end)

    @property
    def prefix(self) -> list[int]:
        return self._ids(self.prefix_text)

    def tail(self, question: str) -> list[int]:
        """Ids of what follows the memories: the live tokens."""
        return self._ids(self.middle_text + question.strip() + self.end_text)

    def chunk(self, text: str) -> list[int]:
        """Ids of one chunk as it stands in the prompt, the blank line after it included."""
        return self._ids(text.strip() + "\n\n")

    def with_text(self, chunks: Sequence[Sequence[int]], question: str) -> list[int]:
        """The whole prompt of RAG: the same ids, the chunks in the memories' place."""
        return [*self.prefix, *(i for chunk in chunks for i in chunk), *self.tail(question)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def closed_book(tokenizer: Any, question: str) -> list[int]:
    """Ids of the prompt that asks for an answer from the weights alone."""
    return Prompt.of(tokenizer, CLOSED_INSTRUCTION).with_text([], question)


def _rendered(tokenizer: Any, instruction: str) -> str:
    facts = f"{instruction}\n\n{_FACTS}"
    if not getattr(tokenizer, "chat_template", None):
        bos = tokenizer.bos_token or ""
        return f"{bos}{facts}Question: {_QUESTION}\nAnswer:"
    system = [{"role": "system", "content": facts}, {"role": "user", "content": _QUESTION}]
    together = [{"role": "user", "content": f"{facts}{_QUESTION}"}]
    try:
        return _template(tokenizer, system)
    except Exception:  # templates refuse a system role each in their own way (Gemma, Mistral)
        return _template(tokenizer, together)


def _template(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if text.count(_FACTS) != 1 or text.count(_QUESTION) != 1:
        raise ValueError("the chat template does not carry the messages as they are")
    return text
