"""The decoder written out, for any number of requests: what a token costs is its arithmetic.

transformers runs a layer as some forty calls; here it is about fifteen, and with `Native` all
layers are one. It holds for decoders of the Llama shape (Llama, Mistral, Qwen2, Qwen3, SmolLM3 and
others that are built alike): `Flat` looks at the parts of a model, then holds its own logits to
the model's. All other models keep transformers' way, which is the reference (decoder.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from app.errors import ModelError
from app.memory.compose import Memories
from app.memory.decode.layers import Layer, layer_of, linear_of, require_parts, require_plain
from app.memory.model.load import LanguageModel
from app.memory.model.product import Product, rounded
from app.memory.shares import Shares

_PROBE = 7
_PROBED, _ROWS = (1, 2, 3, 7, 16, 23, 64, 300), 128
"""Numbers of rows with which products are compared, and how many rows are."""


@dataclass(frozen=True)
class Start:
    """A request before its first token.

    room: tokens that may follow the prompt; memories: what it reads besides; shares: notes how the
    prompt's last token attends to them.
    """

    prompt: Sequence[int]
    room: int
    memories: Memories | None = None
    shares: Shares | None = None


class Flat:
    """A model's weights, which it shares with transformers' modules, and its forward pass."""

    def __init__(self, lm: LanguageModel) -> None:
        """Raises ModelError that says which part of the model is not of the Llama shape."""
        decoder = lm.decoder
        require_parts(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"})
        self.device, self.dtype = lm.device, lm.dtype
        self.layers = [layer_of(module) for module in decoder.layers]
        self.embedding: Tensor = decoder.embed_tokens.weight
        self.norm: Tensor = decoder.norm.weight
        head = linear_of(lm.model, "lm_head")
        self.head = Product(head.weight, head.bias)
        attention = decoder.layers[0].self_attn
        self.dim, self.scaling = int(attention.head_dim), float(attention.scaling)
        self.heads = attention.q_proj.weight.shape[0] // self.dim
        self.kv_heads = attention.k_proj.weight.shape[0] // self.dim
        self.eps = float(decoder.norm.variance_epsilon)
        self._rotary_embedding = decoder.rotary_emb
        require_plain(lm)
        self._require_same(lm)

    def angles(self, start: int, n: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start .. start + n - 1, (n, head_dim), float32."""
        places = torch.arange(start, start + n, device=self.device)[None]
        sample = torch.empty(0, dtype=torch.float32, device=self.device)
        cos, sin = self._rotary_embedding(sample, places)
        return cos[0], sin[0]

    def project(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """x (n, hidden) -> queries (heads, n, dim), keys and values (kv_heads, n, dim).

        cos, sin: (n, dim), the sines of the first half negated.
        """
        x = layer.qkv(self.normed(x, layer.norm_in))
        x = x.view(len(x), -1, self.dim).transpose(0, 1)
        qk, v = x[: self.heads + self.kv_heads], x[self.heads + self.kv_heads :]
        if layer.norm_q is not None and layer.norm_k is not None:
            q, k = qk[: self.heads].contiguous(), qk[self.heads :].contiguous()
            qk = torch.cat([self.normed(q, layer.norm_q), self.normed(k, layer.norm_k)])
        if layer.rotary:
            qk = _turned(qk, cos, sin)
        return qk[: self.heads], qk[self.heads :], v

    def finish(self, layer: Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a layer after attention: x (n, hidden), mixed (n, heads * dim)."""
        x = x + layer.out(mixed)
        gate, up = layer.gate_up(self.normed(x, layer.norm_mid)).chunk(2, dim=-1)
        return x + layer.down(F.silu(gate) * up)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)

    @torch.no_grad()
    def forward(self, readings: Sequence["FlatReading"], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read more tokens of each request -> the last hidden state of each, (requests, hidden)."""
        sizes = [len(some) for some in tokens]
        ids = [token for some in tokens for token in some]
        # Rows beyond the tokens are computed and read by none.
        beyond = rounded(len(ids)) - len(ids)
        x = self.embedding[torch.tensor(ids + [0] * beyond, device=self.device)]
        angles = [reading.angles(n) for reading, n in zip(readings, sizes, strict=True)]
        cos, sin = (
            F.pad(torch.cat(parts), (0, 0, 0, beyond)).to(self.dtype)
            for parts in zip(*angles, strict=True)
        )
        nothing = x.new_zeros(beyond, self.heads * self.dim)
        last = torch.tensor(sizes, device=self.device).cumsum(0) - 1
        for index, layer in enumerate(self.layers):
            qkv = [
                torch.split(part, [*sizes, beyond], 1)[:-1]
                for part in self.project(layer, x, cos, sin)
            ]
            mixed = torch.cat(
                # Laid out alike, or a product might sum in another order beside others than alone.
                [
                    reading.attend(index, *(part.contiguous() for part in parts))
                    for reading, *parts in zip(readings, *qkv, strict=True)
                ]
                + [nothing]
            )
            if index == len(self.layers) - 1:
                x, mixed = x[last], mixed[last]
            x = self.finish(layer, x, mixed)
        for reading, n in zip(readings, sizes, strict=True):
            reading.length += n
        return self.normed(x, self.norm)

    @cached_property
    @torch.no_grad()
    def row_by_row(self) -> bool:
        """Whether a request gets the same beside others as alone, bit for bit. Tried out when two
        first come together (0.4 s): a process that answers one at a time never asks."""
        if self.device.type != "cpu":
            return True  # as everyone does there: rounding may differ with the size of the batch
        layer = self.layers[0]
        random = torch.Generator().manual_seed(0)
        for part in (layer.qkv, layer.out, layer.gate_up, layer.down):
            x = torch.randn(_PROBED[-1], part.weight.shape[1], generator=random).to(self.dtype)
            whole = part(x)[:_ROWS]
            for size in _PROBED[:-1]:
                # Another order of sums shows in few of the results only.
                some = torch.cat([part(rows) for rows in torch.split(x[:_ROWS], size)])
                if not torch.equal(some, whole):
                    return False
        prompts = [list(range(1, size + 1)) for size in _PROBED[:6]]
        alone = [self._read_twice([prompt]) for prompt in prompts]
        return torch.equal(self._read_twice(prompts), torch.cat(alone, dim=1))

    def _read_twice(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits after prompts and after one more token, (2, prompts, vocabulary)."""
        prompts = [[token % len(self.embedding) for token in prompt] for prompt in prompts]
        readings = [FlatReading(self, Start(prompt, 1), self.dtype) for prompt in prompts]
        again = [prompt[:1] for prompt in prompts]
        return torch.stack([self.head(self.forward(readings, part)) for part in (prompts, again)])

    @torch.no_grad()
    def _require_same(self, lm: LanguageModel) -> None:
        """Compare logits of a few tokens, read together and one by one, with the model's own."""
        vocabulary = lm.model.config.get_text_config().vocab_size
        ids = torch.arange(1, _PROBE + 1, device=self.device) * 7 % vocabulary
        expected = lm.model(input_ids=ids[None], use_cache=False).logits[0].float()
        decoder = FlatDecoder(self)
        [reading] = decoder.read([Start(ids[:-2].tolist(), 2)])
        got = [reading.logits]
        for token in ids[-2:].tolist():
            decoder.feed([reading], [token])
            got.append(reading.logits)
        difference = (torch.stack(got) - expected[-3:]).norm() / expected[-3:].norm()
        if not difference < (1e-3 if self.dtype == torch.float32 else 0.1):
            raise ModelError(f"{lm.model.config.model_type}: logits differ from the flat decoder's")


class FlatReading:
    """One request: its memories and live tokens in one cache that is allocated once."""

    logits: Tensor

    def __init__(self, flat: Flat, start: Start, cache: torch.dtype) -> None:
        """`cache`: what keys and values are kept in."""
        memories, prompt, room = start.memories, start.prompt, start.room
        self.flat = flat
        self.entries = 0 if memories is None else memories.keys.shape[3]
        self.length = self.entries
        self.capacity = self.entries + len(prompt) + room
        place = 0 if memories is None else int(memories.start[0])
        self.cos, self.sin = flat.angles(place, len(prompt) + room)
        self.bias = None if memories is None else bias_of(memories)
        shape = (len(flat.layers), flat.kv_heads, self.capacity, flat.dim)
        self.keys = torch.empty(shape, dtype=cache, device=flat.device)
        self.values = torch.empty_like(self.keys)
        # The memories are copied in when the second token is asked for: the first needn't wait.
        self._memories = memories
        self._shares = start.shares

    def settle(self) -> None:
        """The prompt is read: from now on the memories are in the cache."""
        if self._memories is not None:
            self.keys[:, :, : self.entries] = self._memories.keys[:, 0]
            self.values[:, :, : self.entries] = self._memories.values[:, 0]
            self._memories = None

    def angles(self, n: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the next n tokens, as `Flat.project` takes them."""
        at = self.length - self.entries
        return self.cos[at : at + n], _signed(self.sin[at : at + n])

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the keys and values of more tokens and read -> (n, heads * dim)."""
        now = self.length + q.shape[1]
        self.keys[index, :, self.length : now] = k
        self.values[index, :, self.length : now] = v
        if self.length == self.entries:
            return self._attend_prompt(index, q, k, v)
        return self._attend_one(index, q, now)

    def _attend_prompt(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Memories are read where they lie."""
        flat, n = self.flat, q.shape[1]
        if self._memories is None:
            mixed = F.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=flat.scaling, enable_gqa=True
            )[0]
            return mixed.transpose(0, 1).flatten(1)
        later = torch.full((n, n), float("-inf"), device=flat.device).triu(1)
        rows = q.reshape(flat.kv_heads, -1, flat.dim) * flat.scaling
        stored = (rows @ self._memories.keys[index, 0].transpose(1, 2)).float()
        if self.bias is not None:
            stored = stored + self.bias[index, :, None]
        live = (rows @ k.transpose(1, 2)) + later.repeat(flat.heads // flat.kv_heads, 1)
        weights = torch.cat([stored, live], dim=-1).softmax(dim=-1)
        if self._shares is not None:
            last = weights.view(1, flat.heads, n, -1)[:, :, -1, : self.entries]
            self._shares.note(index, last)
        weights = weights.to(v.dtype)
        mixed = weights[..., : self.entries] @ self._memories.values[index, 0]
        mixed = mixed + weights[..., self.entries :] @ v
        return mixed.view(flat.heads, n, flat.dim).transpose(0, 1).flatten(1)

    def _attend_one(self, index: int, q: Tensor, now: int) -> Tensor:
        flat, mask = self.flat, None
        if self.bias is not None:
            mask = F.pad(self.bias[index], (0, now - self.entries))[None, :, None].to(q.dtype)
        # The query heads that share a key-value head stand as rows, so nothing is repeated.
        mixed = F.scaled_dot_product_attention(
            q.reshape(1, flat.kv_heads, -1, flat.dim),
            self.keys[None, index, :, :now],
            self.values[None, index, :, :now],
            attn_mask=mask,
            scale=flat.scaling,
        )
        return mixed.reshape(1, -1)


class FlatDecoder:
    """Requests read together where each then gets what it gets alone, else one after the other."""

    cache: torch.dtype

    def __init__(self, flat: Flat) -> None:
        self.flat, self.cache = flat, flat.dtype

    def read(self, starts: Sequence[Start]) -> list[FlatReading]:
        readings = [FlatReading(self.flat, start, self.cache) for start in starts]
        for some in self._groups(len(readings)):
            self._pass(readings[some], [start.prompt for start in starts[some]], self._head)
        return readings

    def feed(self, readings: Sequence[FlatReading], tokens: Sequence[int]) -> None:
        for reading in readings:
            reading.settle()
        for some in self._groups(len(readings)):
            self._pass(readings[some], [[token] for token in tokens[some]], self._head)

    def _pass(
        self,
        readings: Sequence[FlatReading],
        tokens: Sequence[Sequence[int]],
        head: Callable[[Tensor], Tensor],
    ) -> None:
        for reading, logits in zip(
            readings, head(self.flat.forward(readings, tokens)), strict=True
        ):
            reading.logits = logits

    def _groups(self, n: int) -> list[slice]:
        if n == 1 or self.flat.row_by_row:
            return [slice(0, n)]
        return [slice(i, i + 1) for i in range(n)]

    @torch.no_grad()
    def _head(self, hidden: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary), float32."""
        return self.flat.head(hidden).float()


def bias_of(memories: Memories) -> Tensor | None:
    """What is added to the scores of a single request's entries, (layers, kv_heads, entries).

    float32; None when nothing is added anywhere.
    """
    bias = memories.bias
    if bias is None:
        return None
    bias = bias[:, 0].float()
    if not bias.any():
        return None
    layers, _, kv_heads, entries = memories.keys.shape[:4]
    return bias.expand(layers, kv_heads, entries).contiguous()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _signed(sin: Tensor) -> Tensor:
    """So that the halves of a head need only change places: the first is turned the other way."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
