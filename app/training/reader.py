"""The model that is trained: a copy with LoRA on its linear layers, and the loss of its answers.

Question and answer are the live tokens. Memories and shared prefix were computed beforehand by the
frozen model, so a step costs only the question and the answer, however much the memories hold.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from app.errors import TrainingError
from app.memory.attention import injected
from app.memory.compose import compose
from app.memory.kv import KV
from app.memory.model.adapter import Adapter, AdapterMode, digest, gains
from app.memory.model.load import LanguageModel
from app.memory.model.prompt import Prompt

PREFERENCE = 5.0
"""Initial preference for well-ranked memories, in nats per unit of relevance."""


@dataclass(frozen=True)
class Shown:
    """An example as the model sees it: memories with relevances, question and answer as token ids.

    `teacher` is what the untrained model reads in place of the memories. If it is given, the
    untrained model's predictions are the target instead of the answer's tokens.
    """

    memories: Sequence[KV]
    relevances: Sequence[float]
    tail: Sequence[int]
    answer: Sequence[int]
    teacher: Sequence[KV] | None = None


@dataclass(frozen=True)
class Loss:
    """Loss summed over answer tokens in nats, their number, and the number of live tokens read."""

    total: Tensor
    tokens: int
    read: int


class TrainedReader:
    """A copy of `lm` with trainable low-rank changes. `lm` itself is not changed."""

    def __init__(self, lm: LanguageModel, rank: int, seed: int, prefix: KV | None) -> None:
        """`rank` is that of the changes, `seed` initialises them, `prefix` is the shared prefix."""
        self.base, self._prefix = lm, prefix
        self._scale = 2.0
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=int(self._scale * rank), target_modules="all-linear")
        self.model = inject_adapter_in_model(config, copy.deepcopy(lm.model))
        for parameter in self.model.parameters():
            if parameter.requires_grad:  # in bfloat16, small steps would be rounded away
                parameter.data = parameter.data.float()
        self.preference = torch.nn.Parameter(torch.tensor(PREFERENCE))

    def begin_with(self, adapter: Adapter) -> None:
        """Start from what another run learnt. Raises TrainingError when its rank differs."""
        own = self.parameters()
        self.preference.data.fill_(adapter.preference)
        for name, (down, up) in adapter.weights.items():
            for part, value in (("A", down), ("B", up)):
                held = own.get(f"{name}.lora_{part}.default.weight")
                if held is None or held.shape != value.shape:
                    raise TrainingError(
                        f"the adapter to start from has {name} with rank {down.shape[0]}, which"
                        " does not fit this run: give the same --rank"
                    )
                held.data.copy_(value)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All trained parameters, by name."""
        found = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return {**found, "preference": self.preference}

    def loss(self, shown: Sequence[Shown]) -> Loss:
        """Negative log-likelihood of the answers, or divergence from the teacher if there is one.

        That is KL(untrained model reading `teacher` || reader reading the memories), summed over
        the answer's tokens.
        """
        width = max(len(one.tail) + len(one.answer) for one in shown)
        keep = max(len(one.answer) for one in shown)
        ids = torch.zeros(len(shown), width, dtype=torch.long)
        seen = torch.zeros_like(ids)
        wanted = torch.full((len(shown), keep), -100)
        for row, one in enumerate(shown):  # padded on the left, so that all answers end together
            text = [*one.tail, *one.answer]
            ids[row, width - len(text) :] = torch.tensor(text)
            seen[row, width - len(text) :] = 1
            wanted[row, keep - len(one.answer) :] = torch.tensor(one.answer)
        logits = self._logits(self.model, [one.memories for one in shown], shown, ids, seen, keep)
        wanted = wanted.to(logits.device)
        known = wanted != -100
        taught = [row for row, one in enumerate(shown) if one.teacher is not None]
        untold = wanted.clone()
        untold[taught] = -100
        total = cross_entropy(logits.flatten(0, 1), untold.flatten(), reduction="sum")
        if taught:
            some, places = [shown[row] for row in taught], known[taught]
            with torch.no_grad():
                read = [one.teacher or [] for one in some]
                base = self._logits(self.base.model, read, some, ids[taught], seen[taught], keep)
            right = base[places].log_softmax(-1)
            said = logits[taught][places].log_softmax(-1)
            total = total + (right.exp() * (right - said)).sum()
        return Loss(total, int(known.sum()), int(seen.sum()))

    def _logits(
        self,
        model: torch.nn.Module,
        read: Sequence[Sequence[KV]],
        shown: Sequence[Shown],
        ids: Tensor,
        seen: Tensor,
        keep: int,
    ) -> Tensor:
        """Logits that predict each of the last `keep` tokens, (batch, keep, vocabulary)."""
        device = self.base.device
        memories = compose(read, self.base.rotary, self._prefix)
        if any(len(row) > 1 for row in read):
            behind = gains([list(one.relevances) for one in shown], self.preference)
            memories = memories.preferring(behind)
        width = ids.shape[1]
        empty = width - seen.sum(dim=1, keepdim=True).to(device)
        with injected(model, memories):
            logits: Tensor = model(
                input_ids=ids.to(device),
                attention_mask=seen.to(device),
                position_ids=(memories.positions(width) - empty).clamp_min(0),
                use_cache=False,
                logits_to_keep=torch.arange(width - keep - 1, width - 1, device=device),
            ).logits
        return logits.float()

    def adapter(self, model: str, prefix: str, mode: AdapterMode, codec: str) -> Adapter:
        """What was learnt so far. The arguments are those of `Adapter`, with the prefix as text."""
        state = {name: p.detach().float().cpu().clone() for name, p in self.parameters().items()}
        down = {n.split(".lora_A.")[0]: p for n, p in state.items() if ".lora_A." in n}
        up = {n.split(".lora_B.")[0]: p for n, p in state.items() if ".lora_B." in n}
        weights = {name: (down[name], up[name]) for name in sorted(down)}
        preference = float(state["preference"])
        return Adapter(model, digest(prefix), mode, self._scale, preference, codec, weights)


def answer_ids(prompt: Prompt, lm: LanguageModel, answer: str) -> list[int]:
    """Token ids of an answer, followed by an end token."""
    ends = lm.end_tokens
    own = getattr(prompt.tokenizer, "eos_token_id", None)
    end = own if own in ends else min(ends)
    return [*prompt.tokenizer(answer, add_special_tokens=False).input_ids, end]
