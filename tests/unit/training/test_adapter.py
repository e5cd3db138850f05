"""An adapter is read back as it was written, and refused where it does not belong."""

from pathlib import Path

import pytest
import torch

from app.errors import AdapterError
from app.memory.model.adapter import Adapter, chosen, digest, gains, load
from app.memory.model.load import LanguageModel

NAME = "model.layers.0.self_attn.q_proj"
ADAPTER = Adapter(
    "m" * 64,
    digest("facts"),
    "memory",
    2.0,
    7.5,
    "int8",
    {NAME: (torch.ones(2, 32) / 4, torch.full((32, 2), 0.5))},
)


def written(folder: Path, adapter: Adapter = ADAPTER) -> Path:
    file = folder / f"{adapter.mode}.safetensors"
    file.write_bytes(adapter.payload())
    return file


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = load(written(tmp_path), "m" * 64, "facts", "memory")
    assert (found.scale, found.preference, found.codec) == (2.0, 7.5, "int8")
    assert found.id == ADAPTER.id == "057a8fd9a40ef6e0e141a6f2c113be56"
    for one, other in zip(found.weights[NAME], ADAPTER.weights[NAME], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("model", "prefix", "mode", "reason"),
    [
        (
            "n" * 64,
            "facts",
            "memory",
            "trained for model mmmmmmmmmmmmmmmm, but this process has nnn",
        ),
        ("m" * 64, "other", "memory", "trained for shared prefix"),
        ("m" * 64, "facts", "rag", "trained for mode memory, but this process has rag"),
    ],
)
def test_an_adapter_for_something_else_is_refused(
    tmp_path: Path, model: str, prefix: str, mode: str, reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        load(written(tmp_path), model, prefix, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [0, 3, 60, -1])
def test_a_damaged_adapter_is_refused(tmp_path: Path, cut: int) -> None:
    file = written(tmp_path)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(AdapterError, match="cannot be read as an adapter"):
        load(file, "m" * 64, "facts", "memory")


def test_an_adapter_for_other_layers_is_refused(lm: LanguageModel) -> None:
    short = Adapter(*ADAPTER.__dict__.values())
    wrong = {"model.layers.9.self_attn.q_proj": short.weights[NAME]}
    with pytest.raises(AdapterError, match=r"layers\.9"):
        Adapter(*list(ADAPTER.__dict__.values())[:-1], wrong).merged(lm)


def test_none_and_a_model_without_shipped_adapter_read_untrained() -> None:
    assert chosen("none", "m" * 64, "facts", "memory") is None
    assert chosen("auto", "m" * 64, "facts", "memory") is None


def test_a_folder_is_taken_for_the_mode_that_it_has(tmp_path: Path) -> None:
    written(tmp_path)
    assert chosen(str(tmp_path), "m" * 64, "facts", "memory") is not None
    assert chosen(str(tmp_path), "m" * 64, "facts", "rag") is None
    with pytest.raises(AdapterError, match="holds no adapter"):
        chosen(str(tmp_path / "none"), "m" * 64, "facts", "rag")


def test_memories_behind_the_best_one_lose_attention() -> None:
    found = gains([[0.9, 0.5], [0.4]], 10.0)
    assert torch.allclose(found, torch.tensor([[0.0, -4.0], [0.0, 0.0]]))
