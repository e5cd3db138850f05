"""The state of a training run on disk: one safetensors file, replaced atomically."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.errors import TrainingError


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and JSON values: the step, the curve, and how the run was started.

    Everything random in a step depends on the seed and the step alone, so no generator state and
    no position in the data have to be saved.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def write(self, file: Path) -> None:
        """Raises TrainingError when the file cannot be written, leaving an existing one intact."""
        whole(file, save(self.tensors, {"state": json.dumps(self.state)}))

    @classmethod
    def read(cls, file: Path) -> "Checkpoint":
        """Raises TrainingError when the file is missing or damaged."""
        try:
            with safe_open(file, framework="pt") as stored:
                state = json.loads((stored.metadata() or {})["state"])
                return cls({name: stored.get_tensor(name) for name in list(stored.keys())}, state)
        except FileNotFoundError:
            raise TrainingError(
                f"{file} does not exist, so there is no run to resume: leave out --resume"
            ) from None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(f"{file} is damaged ({error}): start in another --out") from None


def whole(file: Path, payload: bytes) -> None:
    """Write a file atomically. Raises TrainingError, leaving an existing file intact."""
    new = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(payload)
        new.replace(file)
    except OSError as error:
        new.unlink(missing_ok=True)
        why = "the disk is full" if error.errno == errno.ENOSPC else f"{error}"
        raise TrainingError(
            f"{file} cannot be written: {why}; what it held before is intact"
        ) from error


def optimizer_tensors(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the parameters and Adam's moments for each, by name."""
    found = {f"value/{name}": p.detach().clone() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, moment in optimizer.state[parameter].items():
            found[f"{key}/{name}"] = moment.detach().clone()
    return found


def restore(
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
) -> None:
    """Load what `optimizer_tensors` returned. Raises TrainingError when it does not fit."""
    try:
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"value/{name}"])
            moments = {key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {
                "step": tensors[f"step/{name}"].clone(),
                **{key: value.to(parameter, copy=True) for key, value in moments.items()},
            }
    except (KeyError, RuntimeError) as error:
        raise TrainingError(f"the checkpoint is for another model or rank ({error})") from None
