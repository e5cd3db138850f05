"""How right an answer is, and how sure a mean over questions is.

Normalisation, exact match and token F1 are those of SQuAD's evaluation script (Rajpurkar et al.
2016, arXiv 1606.05250; 2018, arXiv 1806.03822): of several right answers the best counts, and
where there is none only an empty answer is right.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def points(self, sign: str = "") -> str:
        """As text, in points of 100; `sign` "+" shows one in front of all numbers."""
        mean, low, high = (100 * x for x in (self.mean, self.low, self.high))
        return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def normalise(text: str) -> str:
    """Lower case, without punctuation and English articles, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains(answer: str, right: Sequence[str]) -> float:
    """1 when a right answer stands in `answer` as whole words, else 0."""
    said = f" {normalise(answer)} "
    return float(any(f" {one} " in said if one else said == "  " for one in _wordings(right)))


def exact(answer: str, right: Sequence[str]) -> float:
    """1 when `answer` is a right answer and nothing else, else 0."""
    return float(normalise(answer) in _wordings(right))


def f1(answer: str, right: Sequence[str]) -> float:
    """Harmonic mean of the shares of words that answer and right answer have in common, 0 to 1."""
    said = normalise(answer).split()
    return max(_f1(said, one.split()) for one in _wordings(right))


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of a metric over questions, and its 95 % interval.

    The interval is the bootstrap's percentiles (Efron 1979) over 10,000 resamples, the same for
    the same values and seed. Raises ValueError when there are no values.
    """
    if not values:
        raise ValueError("a mean of no values")
    found = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = torch.cat(
        [
            found[
                torch.randint(len(found), (_RESAMPLES_AT_ONCE, len(found)), generator=generator)
            ].mean(dim=1)
            for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE)
        ]
    )
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(found.mean()), low, high)


def difference(values: Sequence[float], base: Sequence[float], seed: int = 0) -> Interval:
    """Mean of `values - base` over the same questions, and its 95 % interval.

    Paired: each question is compared with itself, so that how hard the questions are adds nothing
    to the interval. Raises ValueError when the two are not of one length.
    """
    return interval([a - b for a, b in zip(values, base, strict=True)], seed)


def _wordings(right: Sequence[str]) -> list[str]:
    return [one for one in map(normalise, right) if one] or [""]


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))
