"""How a trained reader says that no memory holds the answer."""

from app.evaluation.metrics import normalise

ABSTENTION = "Not in the bank."
"""Its first word begins few answers, so that greedy decoding weighs it against all of them."""


def abstains(answer: str) -> bool:
    """Whether an answer says that nothing was found."""
    said = normalise(answer)
    return not said or said.startswith(normalise(ABSTENTION))
