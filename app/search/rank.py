"""Ranks the passages that a search found, by meaning and by words.

A key captures what a text is about but misses names and numbers; words do the reverse. Together
they put the right passage first three times in four, keys alone one time in two
(docs/decisions/0017-search.md). Everything is computed from the passages at hand, which the asker
may read, so nothing else can move a passage up or down.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

POOL = 100
"""Number of nearest passages that words re-rank; more change little (decision 0017)."""

_WEIGHT = 0.6
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Ranked:
    """The index of a text, and its relevance: cosine + 0.6 x the share of the question's words."""

    index: int
    relevance: float


def best(question: str, texts: Sequence[str], cosines: Sequence[float], k: int) -> list[Ranked]:
    """Return the k most relevant texts, best first; a text that occurs several times comes once.

    `texts` come nearest first, with the cosine of each. Relevance is cosine + 0.6 x the share of
    the question's words that the text has, each word weighted by how rare it is among the texts
    (inverse document frequency as in BM25). Words that occur in no text do not count. Ties keep
    the given order. Without a question, relevance is the cosine.
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
    """For each text, the weighted share of the question's words that it has, 0 to 1."""
    asked = {_stem(word) for word in _WORD.findall(question.lower())}
    if not asked:
        return [0.0] * len(texts)
    # Only words that begin like one of the question's are stemmed, which halves the time.
    begin = "|".join(sorted({re.escape(_begin(word)) for word in asked}))
    alike = re.compile(rf"\b(?:{begin})\w*")
    had = [asked & {_stem(word) for word in set(alike.findall(text.lower()))} for text in texts]
    weights = {}
    for word in asked:
        count = sum(word in some for some in had)
        if count:
            weights[word] = math.log(1 + (len(texts) - count + 0.5) / (count + 0.5))
    whole = sum(weights.values())
    # Summed in a fixed order, so that the same words give the same sum in every process.
    return [sum(weights[word] for word in sorted(some)) / whole if some else 0.0 for some in had]


def _begin(stem: str) -> str:
    """The letters that every word with this stem begins with; its y may stand for "ies"."""
    return stem[:-1] if stem.endswith("y") and len(stem) > 1 else stem


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """Strip common English endings, so that "works", "worked" and "working" match."""
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
