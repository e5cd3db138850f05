"""The order of what a search found: by meaning and by words together.

A key says what a text is about, and misses names and numbers; words are the reverse. Both together
are right for the first place three times in four where keys alone are for one in two
(docs/decisions/0017-search.md). Everything is computed from the passages at hand, those that the
one who asks may read, so that nothing else can move a passage up or down.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

POOL = 100
"""Nearest passages among which words decide; more of them change little (decision 0017)."""

_WEIGHT = 0.6
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Ranked:
    """A text by its index, and its relevance: cosine + 0.6 x the share of the words."""

    index: int
    relevance: float


def best(question: str, texts: Sequence[str], cosines: Sequence[float], k: int) -> list[Ranked]:
    """The k most relevant texts, best first; a text that occurs several times comes once.

    texts: nearest first, with the cosine of each. Relevance is cosine + 0.6 x the share of the
    question's words that the text has, each word counted by how rare it is among the texts
    (inverse document frequency as in BM25). Words that no text has do not count. Equal ones stay in
    the given order; without a question relevance is the cosine.
    """
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(text, index)
    chosen = [Ranked(index, cosines[index]) for index in first.values()]
    if question:
        shares = _shares(question, list(first))
        both = zip(chosen, shares, strict=True)
        chosen = [Ranked(one.index, one.relevance + _WEIGHT * share) for one, share in both]
        chosen.sort(key=lambda one: -one.relevance)
    return chosen[:k]


def _shares(question: str, texts: Sequence[str]) -> list[float]:
    """For each text the share of the question's words that it has, 0 to 1."""
    asked = {_stem(word) for word in _WORD.findall(question.lower())}
    if not asked:
        return [0.0] * len(texts)
    # Only words that begin as an asked one are looked at: half of the time.
    begin = "|".join(sorted({re.escape(_begin(word)) for word in asked}))
    alike = re.compile(rf"\b(?:{begin})\w*")
    had = [asked & {_stem(word) for word in set(alike.findall(text.lower()))} for text in texts]
    weights = {}
    for word in asked:
        count = sum(word in some for some in had)
        if count:
            weights[word] = math.log(1 + (len(texts) - count + 0.5) / (count + 0.5))
    whole = sum(weights.values())
    # In order, so that the same words give the same sum in every process.
    return [sum(weights[word] for word in sorted(some)) / whole if some else 0.0 for some in had]


def _begin(stem: str) -> str:
    """What every word of a stem begins with: the y may stand for ies."""
    return stem[:-1] if stem.endswith("y") and len(stem) > 1 else stem


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """Without the commonest English endings, so that works, worked and working are one word."""
    if word.endswith("ies") and len(word) > 3 and word[-4] not in "ae":
        word = word[:-3] + "y"
    elif (
        word.endswith("s")
        and len(word) > 3
        and not word.endswith(("us", "ss", "aes", "ees", "oes"))
    ):
        word = word[:-1]
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) > len(ending) + 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word
