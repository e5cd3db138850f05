"""What an evaluation asks."""

from dataclasses import dataclass

from app.errors import UsageError
from app.runtime.models import Mode


@dataclass(frozen=True)
class Plan:
    """What is asked: modes, numbers of memories, how many questions (all by default)."""

    modes: tuple[Mode, ...] = ("memory", "rag", "closed")
    ks: tuple[int, ...] = (1, 3, 5)
    n: int | None = None
    seed: int = 0
    max_tokens: int = 24
    gold: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values that cannot be."""
        if not self.ks or not all(1 <= k <= 100 for k in self.ks):
            raise UsageError(f"-k is {','.join(map(str, self.ks))}: give numbers from 1 to 100")
        if self.n is not None and self.n < 1:
            raise UsageError(f"-n is {self.n}: give at least 1")
        for mode in self.modes:
            if mode not in ("memory", "rag", "closed"):
                raise UsageError(f"--mode names {mode!r}: memory, rag, closed or several by commas")

    def columns(self) -> list[tuple[Mode, int]]:
        """Mode and k of each answer; k is 0 where nothing is read."""
        ks = sorted(set(self.ks))
        return [(m, k) for m in self.modes for k in ((0,) if m == "closed" else ks)]
