"""The reader adapter: low-rank changes of linear layers, for one model and one shared prefix.

    W' = W + scale * B A        (LoRA, Hu et al. 2021, arXiv 2106.09685)

They are trained on question and answer tokens alone, and merged into a copy of the model, which
reads memories. The encoder and closed-book answers keep the original model, so that a new adapter
never makes a bank stale.
"""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.errors import AdapterError
from app.memory.model.load import LanguageModel

AdapterMode = Literal["memory", "rag"]
MODES: tuple[AdapterMode, ...] = ("memory", "rag")
SHIPPED = Path(__file__).parent / "adapters"
_FORMAT = "membank reader adapter 1"


@dataclass(frozen=True)
class Adapter:
    """Weights by name of linear layer: A (rank, inputs) and B (outputs, rank), float32.

    `model` is the model's fingerprint, `prefix` the SHA-256 of the shared prefix's text, in hex.
    `preference` is the number of nats by which a memory's logits are lowered per unit of relevance
    that it is behind the best memory (`Memories.preferring`). `codec` records which codec it was
    trained with, for information.
    """

    model: str
    prefix: str
    mode: AdapterMode
    scale: float
    preference: float
    codec: str
    weights: dict[str, tuple[Tensor, Tensor]]

    def payload(self) -> bytes:
        """The content of the adapter's file: safetensors, with weights in float16."""
        tensors = {}
        for name, (down, up) in self.weights.items():
            tensors[f"{name}.A"] = down.half().contiguous()
            tensors[f"{name}.B"] = up.half().contiguous()
        header = {
            "format": _FORMAT,
            **{key: getattr(self, key) for key in ("model", "prefix", "mode", "codec")},
            **{key: repr(getattr(self, key)) for key in ("scale", "preference")},
        }
        return save(tensors, header)

    @property
    def id(self) -> str:
        """SHA-256 over everything that determines what the adapter does, first 32 hex digits."""
        known = hashlib.sha256(
            repr((self.model, self.prefix, self.mode, self.scale, self.preference)).encode()
        )
        for name, parts in sorted(self.weights.items()):
            known.update(name.encode())
            for part in parts:
                known.update(part.half().cpu().contiguous().numpy().tobytes())
        return known.hexdigest()[:32]

    def merged(self, lm: LanguageModel) -> LanguageModel:
        """Return a second model with the changed weights, sharing all other weights with `lm`.

        Raises AdapterError when a layer is missing or has another shape.
        """
        shared = {id(tensor): tensor for tensor in [*lm.model.parameters(), *lm.model.buffers()]}
        reader = copy.deepcopy(lm.model, shared)
        layers = dict(reader.named_modules())
        for name, (down, up) in self.weights.items():
            weight = getattr(layers.get(name), "weight", None)
            if weight is None or weight.shape != (up.shape[0], down.shape[1]):
                raise AdapterError(
                    f"the adapter changes {name}, which this model lacks, or has in another shape"
                )
            change = self.scale * (up.to(weight.device) @ down.to(weight.device))
            layers[name].weight = torch.nn.Parameter(
                (weight.float() + change).to(weight.dtype), requires_grad=False
            )
        return LanguageModel(reader, lm.tokenizer)

    def gains(self, relevances: list[list[float]]) -> Tensor:
        """Attention bias in nats for memories of these relevances, (requests, most memories)."""
        return gains(relevances, self.preference)


def gains(relevances: list[list[float]], preference: float | Tensor) -> Tensor:
    """Bias in attention for each request's memories, in nats, (requests, most memories).

    It is `preference` times how far each memory's relevance is behind the request's best: 0 or
    negative.
    """
    width = max(1, *(len(row) for row in relevances))
    behind = torch.zeros(len(relevances), width)
    for number, row in enumerate(relevances):
        for place, relevance in enumerate(row):
            behind[number, place] = relevance - max(row)
    return behind * preference


def load(file: Path, model: str, prefix: str, mode: AdapterMode | None = None) -> Adapter:
    """Read an adapter for the model with this fingerprint and the prefix with this text.

    `mode` None accepts either mode. Raises AdapterError naming the file when it is damaged, or was
    trained for another model, prefix or mode.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            header: dict[str, Any] = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name).float() for name in list(stored.keys())}
        if header["format"] != _FORMAT:
            raise KeyError("format")
        names = sorted(name.removesuffix(".A") for name in tensors if name.endswith(".A"))
        weights = {name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names}
        found = Adapter(
            header["model"],
            header["prefix"],
            header["mode"],
            float(header["scale"]),
            float(header["preference"]),
            header["codec"],
            weights,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise AdapterError(
            f"{file} cannot be read as an adapter ({error}): train it again"
        ) from None
    for name, wanted, of in (
        ("model", model, found.model),
        ("shared prefix", digest(prefix), found.prefix),
        ("mode", mode or found.mode, found.mode),
    ):
        if wanted != of:
            raise AdapterError(
                f"{file} was trained for {name} {of[:16]}, but this process has {wanted[:16]}:"
                " train one with `membank train`, or set MEMBANK_ADAPTER to auto or none"
            )
    return found


def chosen(choice: str, model: str, prefix: str, mode: AdapterMode) -> Adapter | None:
    """Load the adapter that MEMBANK_ADAPTER names: auto, none, or a `membank train --out` folder.

    `auto` is the adapter shipped for this model and prefix, if there is one. Returns None for a
    folder that has an adapter only for the other mode. Raises AdapterError for a folder that has no
    adapter, or one that does not fit.
    """
    if choice == "none":
        return None
    folder = SHIPPED / model[:16] if choice == "auto" else Path(choice).expanduser()
    file = folder / f"{mode}.safetensors"
    if file.is_file():
        return load(file, model, prefix, mode)
    if choice != "auto" and not any((folder / f"{m}.safetensors").is_file() for m in MODES):
        raise AdapterError(
            f"MEMBANK_ADAPTER={choice} holds no adapter: give the --out folder of `membank train`,"
            " auto or none"
        )
    return None


def digest(prefix: str) -> str:
    return hashlib.sha256(prefix.encode()).hexdigest()
