"""What messages become: a question, the dialogue before it, an instruction."""

import pytest

from app.api.openai.dialogue import Dialogue, Message
from app.errors import UsageError
from app.memory.model.prompt import Turn


def said(*messages: tuple[str, object]) -> Dialogue:
    return Dialogue.of(
        [Message.model_validate({"role": role, "content": text}) for role, text in messages]
    )


def words(text: str) -> int:
    return len(text.split())


def test_turns_alternate_and_end_before_the_question() -> None:
    found = said(
        *(("assistant", "Welcome."), ("system", "Be kind."), ("user", "One"), ("user", "two?")),
        *(
            ("assistant", "Three."),
            ("user", ""),
            ("assistant", "Four."),
            ("developer", "Be short."),
        ),
        ("user", [{"type": "text", "text": "Five"}, {"type": "text", "text": "six?"}]),
    )
    assert found == Dialogue(
        "Five\nsix?",
        (Turn("user", "One\n\ntwo?"), Turn("assistant", "Three.\n\nFour.")),
        "Be kind.\n\nBe short.",
    )


@pytest.mark.parametrize(
    "messages",
    [
        [("system", "Be kind.")],
        [("user", "One?"), ("assistant", "Two.")],
        [("user", " ")],
        [("user", None)],
    ],
)
def test_without_a_question_at_the_end_there_is_none(messages: list[tuple[str, object]]) -> None:
    with pytest.raises(UsageError, match="the last message must be the user's"):
        said(*messages)


def test_the_oldest_turns_are_left_out_in_pairs() -> None:
    whole = said(*((("user", "assistant")[n % 2], f"word {n}") for n in range(9)))
    assert len(whole.turns) == 8
    # The question takes 2 tokens, each turn 2; a template puts up to 8 around each.
    assert whole.fitting(2 + 16 + 8 * 10, words) == whole
    assert whole.fitting(2 + 16 + 8 * 10 - 1, words).turns == whole.turns[2:]
    assert whole.fitting(0, words).turns == ()
    assert whole.fitting(-1, words).question == "word 8"


def test_a_dialogue_has_a_bound_whatever_the_window_is() -> None:
    whole = said(*((("user", "assistant")[n % 2], "word " * 100) for n in range(41)))
    assert len(whole.fitting(1_000_000, words).turns) == 8
