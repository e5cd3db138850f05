"""The fitted codec against a codec written plainly, and against what it promises."""

from pathlib import Path

import pytest
import torch

from app.errors import BlobError, ProfileError
from app.memory.codec.pack import check, codec_for, decode, pack, unpack
from app.memory.codec.transform import Codebook, Transform, rows_of
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.load import LanguageModel
from app.training.calibrate import fit
from tests.unit.memory.families import tiny

PROFILE = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(LanguageModel(tiny("llama"), tokenizer=None), [3, 4, 5])


def chunks(n: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, 97, (64,), generator=generator).tolist() for _ in range(n)]


@pytest.fixture(scope="module")
def codebook(encoder: Encoder) -> Codebook:
    return fit(encoder, chunks(100, 1), [7, 8], model="m" * 64, ratios=[8.0])[0]


def mean_error(kv: KV, back: KV) -> float:
    """Square error of keys and values over their variance between tokens."""
    errors = []
    for x, y in ((kv.keys, back.keys), (kv.values, back.values)):
        spread = (x - x.mean(dim=2, keepdim=True)).square().mean()
        errors.append(float((x - y).square().mean() / spread))
    return sum(errors) / 2


def test_what_was_not_fitted_on_comes_back_nearly(encoder: Encoder, codebook: Codebook) -> None:
    codec, kv = Transform(codebook), encoder.encode(chunks(1, 99))[0]
    back = unpack(pack(kv, PROFILE, codec), PROFILE, codec)
    assert back.keys.shape == kv.keys.shape
    assert mean_error(kv, back) < 0.3
    assert 7.0 < codebook.ratio < 9.0


def test_decoding_is_looking_up_and_multiplying(encoder: Encoder, codebook: Codebook) -> None:
    """One token at a time, one piece at a time, in float64."""
    codec, kv = Transform(codebook), encoder.encode(chunks(1, 98))[0]
    codes = codec.encode(kv.keys, kv.values)["codes"]
    ((keys, values),) = codec.decode([{"codes": codes}], [(4, 2, 64, 8)], torch.float32)
    for token in (0, 17, 63):
        at, row = 0, []
        for group in codebook.groups:
            components = []
            for words in group.words:
                for piece in words:
                    components.append(piece[int(codes[token, at])].double())
                    at += 1
            row.append(torch.cat(components) @ group.synthesis.double() + group.mean.double())
        whole = torch.cat(row).view(4, 2, 2, 8)
        torch.testing.assert_close(keys[:, :, token].double(), whole[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values[:, :, token].double(), whole[:, 1], atol=1e-4, rtol=1e-4)


def distances(codebook: Codebook, kv: KV, codes: torch.Tensor) -> torch.Tensor:
    """From each piece to its codeword, and to the nearest, in float64, (2, tokens, codes)."""
    rows, found = rows_of(kv.keys, kv.values).double(), []
    first = at = 0
    for group in codebook.groups:
        width = len(group.mean)
        rest = (rows[:, first : first + width] - group.mean.double()) @ group.analysis.double()
        first += width
        for words in group.words:
            for piece in words.double():
                part, rest = rest[:, : piece.shape[1]], rest[:, piece.shape[1] :]
                away = torch.cdist(part, piece, compute_mode="donot_use_mm_for_euclid_dist")
                chosen = away.gather(1, codes[:, at, None].long())[:, 0]
                found.append(torch.stack([chosen, away.amin(1)]))
                at += 1
    return torch.stack(found, dim=2)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_nearest_codeword_stands_for_each_piece(
    encoder: Encoder, codebook: Codebook, tmp_path: Path, compiled: bool
) -> None:
    codec = Transform(codebook, tmp_path if compiled else None)
    kv = encoder.encode(chunks(1, 94))[0]
    for some in (kv, KV(kv.keys[:, :, :1], kv.values[:, :, :1])):
        codes = codec.encode(some.keys, some.values)["codes"]
        chosen, nearest = distances(codebook, some, codes)
        torch.testing.assert_close(chosen, nearest, rtol=2e-3, atol=1e-5)
    assert bool(list(tmp_path.glob("nearest-*.so"))) == compiled


def test_without_a_compiler_torch_searches(
    encoder: Encoder, codebook: Codebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = encoder.encode(chunks(1, 94))[0]
    monkeypatch.setenv("PATH", str(tmp_path))
    codes = Transform(codebook, tmp_path / "built").encode(kv.keys, kv.values)["codes"]
    assert torch.equal(codes, Transform(codebook).encode(kv.keys, kv.values)["codes"])


def test_memories_are_decoded_together_as_one_by_one(encoder: Encoder, codebook: Codebook) -> None:
    codec = Transform(codebook)
    stored = [kv for n, seed in ((1, 95), (2, 96)) for kv in encoder.encode(chunks(n, seed))]
    short = KV(stored[0].keys[:, :, :7], stored[0].values[:, :, :7])
    payloads = [pack(kv, PROFILE, codec) for kv in (*stored, short)]
    together = decode([check(payload, PROFILE, codec) for payload in payloads], codec)
    for payload, kv in zip(payloads, together, strict=True):
        alone = unpack(payload, PROFILE, codec)
        torch.testing.assert_close(kv.keys, alone.keys)
        torch.testing.assert_close(kv.values, alone.values)
    assert decode([], codec) == []


def test_more_bytes_lose_less(encoder: Encoder) -> None:
    kv = encoder.encode(chunks(1, 97))[0]
    errors = []
    for book in fit(encoder, chunks(100, 1), [7], model="m", ratios=[16.0, 8.0, 4.0]):
        codec = Transform(book)
        errors.append(mean_error(kv, unpack(pack(kv, PROFILE, codec), PROFILE, codec)))
    assert errors[0] > errors[1] > errors[2]


def test_a_codebook_is_its_file(codebook: Codebook, tmp_path: Path, encoder: Encoder) -> None:
    file = tmp_path / "c.safetensors"
    file.write_bytes(codebook.payload)
    loaded = Codebook.load(file)
    assert Transform(loaded).name == Transform(codebook).name
    assert (loaded.shape, loaded.model) == (codebook.shape, codebook.model)
    kv = encoder.encode(chunks(1, 96))[0]
    codec = codec_for(str(file), "m" * 64, tmp_path)
    assert pack(kv, PROFILE, codec) == pack(kv, PROFILE, Transform(codebook))


def test_a_damaged_codebook_is_refused_by_name(codebook: Codebook, tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    with pytest.raises(ProfileError, match=r"c\.safetensors"):
        Codebook.load(file)
    file.write_bytes(codebook.payload[:-100])
    with pytest.raises(ProfileError, match=r"c\.safetensors"):
        Codebook.load(file)


def test_a_memory_of_another_shape_is_refused(codebook: Codebook) -> None:
    other = KV(torch.zeros(5, 2, 3, 8), torch.zeros(5, 2, 3, 8))
    with pytest.raises(BlobError, match="does not fit the codebook"):
        pack(other, PROFILE, Transform(codebook))


def test_too_little_text_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ProfileError, match="too few"):
        fit(encoder, chunks(3, 1), [7], model="m", ratios=[8.0])
