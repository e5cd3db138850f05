"""The prompt's parts, for tokenizers with a chat template and without."""

from typing import Any

import pytest

from app.memory.model.prompt import Prompt, closed_book


class Letters:
    """A tokenizer of one token per character."""

    bos_token = "<s>"

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("Encoding", (), {"input_ids": [ord(c) for c in text]})()

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        if self.chat_template == "no system" and messages[0]["role"] == "system":
            raise ValueError("System role not supported")
        turns = "".join(f"[{m['role']}]{m['content']}" for m in messages)
        return turns + "[assistant]"


def text_of(ids: list[int]) -> str:
    return "".join(map(chr, ids))


@pytest.mark.parametrize("template", ["chat", "no system", None])
def test_prefix_chunks_and_tail_are_the_whole_prompt(template: str | None) -> None:
    prompt = Prompt.of(Letters(template))
    chunk = prompt.chunk("A fact.")
    whole = text_of(prompt.with_text([chunk, chunk], " What? "))
    assert whole == text_of(prompt.prefix) + "A fact.\n\nA fact.\n\n" + text_of(
        prompt.tail("What?")
    )
    assert whole.count("What?") == 1
    assert "\u2063" not in whole


def test_the_question_stands_behind_the_facts() -> None:
    whole = text_of(Prompt.of(Letters("chat")).with_text([[ord("F")]], "What?"))
    assert whole.startswith("[system]")
    assert whole.endswith("F[user]What?[assistant]")


def test_closed_book_has_no_place_for_facts() -> None:
    assert "facts" not in text_of(closed_book(Letters("chat"), "What?"))
