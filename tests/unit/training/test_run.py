"""Runs: the loss falls, a kill changes nothing, a full disk and an interrupt leave what was."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.errors import TrainingError
from app.local.processes import wait_until
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from app.training.checkpoint import Checkpoint, whole
from app.training.examples import Example
from app.training.loop import Plan, Run
from app.training.reader import Loss, Shown, TrainedReader, answer_ids
from tests.unit.memory.families import tiny
from tests.unit.training.conftest import PROMPT, Words, examples

PLAN = Plan(steps=12, batch=4, micro=2, rate=5e-3, rank=2, every=4, valid=8)


def made(folder: Path, plan: Plan = PLAN, identity: Any = None, kept: Any = None) -> Run:
    lm = LanguageModel(tiny("llama"), Words())
    encoder = Encoder(lm, PROMPT.prefix)
    reader = TrainedReader(lm, plan.rank, plan.seed, encoder.prefix)

    def shown(one: Example) -> Shown:
        memories = encoder.encode([PROMPT.chunk(text) for text in one.texts])
        answer = answer_ids(PROMPT, lm, one.answer)
        if one.question is None:
            return Shown(memories, one.relevances, answer[:1], answer[1:], teacher=[])
        return Shown(memories, one.relevances, PROMPT.tail(one.question), answer)

    def loss(some: Sequence[Example]) -> Loss:
        return reader.loss([shown(one) for one in some])

    return Run(
        reader, loss, plan, folder, identity or {"data": "d"}, kept or (lambda point, best: None)
    )


def trained(run: Run, stop_at: int = 10**9) -> dict[str, torch.Tensor]:
    drawn, _ = examples(30)

    def tell(now: Any) -> None:
        if now.step == stop_at:
            raise KeyboardInterrupt

    run.train(drawn, [drawn.of(i, 99) for i in range(8)], tell)
    return load_file(run.checkpoint)


def test_the_loss_falls_and_the_best_is_kept(tmp_path: Path) -> None:
    kept: list[bool] = []
    run = made(tmp_path, kept=lambda point, best: kept.append(best))
    trained(run)
    losses = [point.valid_loss for point in run.outcome.curve]
    assert [point.step for point in run.outcome.curve] == [4, 8, 12]
    assert losses[-1] < losses[0]
    assert kept[0]
    assert sum(kept) >= 2


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole_run = trained(made(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        trained(made(tmp_path / "cut"), stop_at=6)
    again = made(tmp_path / "cut")
    assert again.resume() == 4
    resumed = trained(again)
    assert resumed.keys() == whole_run.keys()
    assert all(torch.equal(resumed[name], whole_run[name]) for name in resumed)


@pytest.mark.parametrize(
    ("plan", "identity", "reason"),
    [
        (Plan(steps=12, batch=4, micro=2, rate=1e-3, rank=2, every=4, valid=8), None, "rate"),
        (PLAN, {"data": "other"}, "data d, but this one has other"),
    ],
)
def test_a_run_is_not_resumed_as_another(
    tmp_path: Path, plan: Plan, identity: Any, reason: str
) -> None:
    trained(made(tmp_path))
    with pytest.raises(TrainingError, match=reason):
        made(tmp_path, plan, identity).resume()


def test_without_gain_a_run_ends_early(tmp_path: Path) -> None:
    run = made(tmp_path, Plan(steps=400, batch=2, rate=1e-9, rank=2, every=1, patience=2, valid=1))
    run._optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    trained(run)
    assert run.outcome.stopped_early
    assert run.outcome.curve[-1].step == 3


def test_nothing_to_resume_and_damage_are_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no run to resume"):
        made(tmp_path).resume()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x08")
    with pytest.raises(TrainingError, match="is damaged"):
        made(tmp_path).resume()


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    Checkpoint({"a": torch.ones(2)}, {"step": 1}).write(file)
    write = Path.write_bytes

    def full(self: Path, payload: bytes) -> int:
        write(self, payload[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TrainingError, match="the disk is full; what it held before is intact"):
        whole(file, b"more")
    assert Checkpoint.read(file).state == {"step": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_killed_process_resumes_to_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM]
    here = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, str(tmp_path / "cut"), "slow"], env=here)
    file = tmp_path / "cut" / "checkpoint.safetensors"
    assert wait_until(lambda: killed.poll() is not None or file.exists(), 100)
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for folder in ("cut", "whole"):
        subprocess.run([*command, str(tmp_path / folder), "fast"], env=here, check=True)
    cut, uncut = (load_file(tmp_path / f / "checkpoint.safetensors") for f in ("cut", "whole"))
    assert all(torch.equal(cut[name], uncut[name]) for name in uncut)
    state = Checkpoint.read(file).state
    assert state["step"] == PLAN.steps
    assert json.dumps(state["identity"])


_PROGRAM = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.unit.training.test_run import made, trained, examples
folder, slow = Path(sys.argv[1]), sys.argv[2] == "slow"
run = made(folder)
if (folder / "checkpoint.safetensors").exists():
    run.resume()
if slow:
    one = run._one
    run._one = lambda drawn: (time.sleep(0.5), one(drawn))[1]
trained(run)
"""
