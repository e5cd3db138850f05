"""The training loop: AdamW over shuffled epochs, warm-up and cosine, validation, checkpoints and
early stopping.

Every step is a function of the seed and its number, so a run that was killed and resumed from its
last checkpoint ends with the same weights as one that was not.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.errors import TrainingError
from app.training.checkpoint import Checkpoint, optimizer_tensors, restore
from app.training.examples import Example, Examples
from app.training.reader import Loss, TrainedReader

PREFERENCE_RATE = 40.0
"""Learning rate of the preference as a multiple of the weights': it is on another scale."""


@dataclass(frozen=True)
class Plan:
    """The hyperparameters of a run, which can only be resumed with the same plan."""

    steps: int = 600
    batch: int = 16
    micro: int = 8
    """Examples per forward pass, grouped by similar size."""
    rate: float = 5e-4
    warmup: float = 0.05
    clip: float = 1.0
    rank: int = 8
    seed: int = 0
    every: int = 50
    """Steps between validations, each followed by a checkpoint."""
    patience: int = 6
    """Consecutive validations without a better loss after which the run ends."""
    valid: int = 160
    """Examples per validation."""

    def __post_init__(self) -> None:
        """Raises TrainingError for a value below 1."""
        for name in ("steps", "batch", "micro", "rank", "every", "patience", "valid"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0 to steps - 1: linear warm-up, then half a cosine down to 5 %."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        share = (step - warm) / max(1, self.steps - warm)
        return self.rate * (0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Point:
    """A point on a run's curve, with mean losses per token in nats.

    `train_loss` is the mean since the previous point.
    """

    step: int
    train_loss: float
    valid_loss: float
    preference: float
    seconds: float


@dataclass
class Progress:
    """What is reported after every step. `loss` is the step's mean per token in nats."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass
class Outcome:
    """The curve of a run, and its best point."""

    curve: list[Point] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> Point:
        return min(self.curve, key=lambda point: point.valid_loss)


LossOf = Callable[[Sequence[Example]], Loss]


class Run:
    """A training run, with its checkpoint in a folder."""

    def __init__(
        self,
        reader: TrainedReader,
        loss: LossOf,
        plan: Plan,
        folder: Path,
        identity: dict[str, Any],
        validated: Callable[[Point, bool], None],
    ) -> None:
        """`identity` must be equal when the run is resumed.

        `validated` is called with each point of the curve and with whether it is the best so far.
        """
        self._reader, self._loss, self._plan, self._folder = reader, loss, plan, folder
        self._identity = identity | asdict(plan)
        self._validated = validated
        self._parameters = reader.parameters()
        weights = [p for name, p in self._parameters.items() if name != "preference"]
        groups = [
            {"params": weights, "weight_decay": 0.01, "times": 1.0},
            {"params": [reader.preference], "weight_decay": 0.0, "times": PREFERENCE_RATE},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99))
        self._step, self._seconds, self.outcome = 0, 0.0, Outcome()

    @property
    def checkpoint(self) -> Path:
        return self._folder / "checkpoint.safetensors"

    def resume(self) -> int:
        """Continue from the last checkpoint and return its step.

        Raises TrainingError when there is none, or when it belongs to a different run.
        """
        found = Checkpoint.read(self.checkpoint)
        then, now = found.state["identity"], self._identity
        if differs := sorted(k for k in now if then.get(k) != now[k]):
            name = differs[0]
            raise TrainingError(
                f"{self.checkpoint} comes from a run with {name} {then.get(name)}, but this one has"
                f" {now[name]}: resume with the same value, or start in another --out"
            )
        restore(self._parameters, self._optimizer, found.tensors)
        self._step, self._seconds = found.state["step"], found.state["seconds"]
        self.outcome = Outcome([Point(**point) for point in found.state["curve"]])
        return self._step

    def train(
        self, examples: Examples, valid: Sequence[Example], tell: Callable[[Progress], None]
    ) -> Outcome:
        """Train from the run's current step to the plan's last, or until it stops early."""
        plan = self._plan
        started, done_before = time.perf_counter(), self._step
        total, tokens = 0.0, 0
        while self._step < plan.steps and not self._enough():
            before = time.perf_counter()
            loss, said, read = self._one(examples)
            total, tokens = total + loss, tokens + said
            self._step += 1
            now = time.perf_counter()
            each = (now - started) / (self._step - done_before)
            left = each * (plan.steps - self._step)
            tell(Progress(self._step, plan.steps, loss / said, read / (now - before), left))
            self._seconds += now - before
            if self._step % plan.every == 0 or self._step == plan.steps:
                self._validate(valid, total / tokens)
                total, tokens = 0.0, 0
                self._save()
        self.outcome.stopped_early = self._step < plan.steps
        return self.outcome

    def _one(self, examples: Examples) -> tuple[float, int, int]:
        """Take a step; return its summed loss, and the numbers of answer and live tokens."""
        plan = self._plan
        start = self._step * plan.batch
        batch = [examples.at(position) for position in range(start, start + plan.batch)]
        batch.sort(key=lambda one: sum(map(len, one.texts)))
        losses, said, read = 0.0, 0, 0
        self._optimizer.zero_grad()
        for start in range(0, len(batch), plan.micro):
            loss = self._loss(batch[start : start + plan.micro])
            loss.total.backward()  # type: ignore[no-untyped-call]
            losses += float(loss.total.detach())
            said, read = said + loss.tokens, read + loss.read
        if not math.isfinite(losses):
            raise TrainingError(
                f"the loss of step {self._step + 1} is {losses}: lower --rate; the last checkpoint"
                " is intact"
            )
        for parameter in self._parameters.values():
            if parameter.grad is not None:
                parameter.grad.div_(said)
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), plan.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rate_at(self._step) * group["times"]
        self._optimizer.step()
        return losses, said, read

    def _validate(self, valid: Sequence[Example], train_loss: float) -> None:
        losses, tokens = 0.0, 0
        ordered = sorted(valid, key=lambda one: sum(map(len, one.texts)))
        with torch.no_grad():
            for start in range(0, len(ordered), self._plan.micro):
                loss = self._loss(ordered[start : start + self._plan.micro])
                losses, tokens = losses + float(loss.total), tokens + loss.tokens
        preference = float(self._reader.preference.detach())
        point = Point(self._step, train_loss, losses / tokens, preference, round(self._seconds, 1))
        self.outcome.curve.append(point)
        self._validated(point, point is self.outcome.best)

    def _enough(self) -> bool:
        curve = self.outcome.curve
        return (
            bool(curve) and len(curve) - 1 - curve.index(self.outcome.best) >= self._plan.patience
        )

    def _save(self) -> None:
        state = {
            "step": self._step,
            "seconds": self._seconds,
            "curve": [asdict(point) for point in self.outcome.curve],
            "identity": self._identity,
        }
        tensors = optimizer_tensors(self._parameters, self._optimizer)
        Checkpoint(tensors, state).write(self.checkpoint)
