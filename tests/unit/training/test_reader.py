"""The loss of a batch, and the base model that training leaves as it was."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.memory.attention import injected
from app.memory.compose import compose
from app.memory.encode import Encoder
from app.memory.model.adapter import gains
from app.memory.model.load import LanguageModel
from app.training.reader import Shown, TrainedReader
from tests.unit.memory.families import tiny

CHUNKS = [[10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34]]


def shown(encoder: Encoder) -> list[Shown]:
    a, b, c = encoder.encode(CHUNKS)
    return [
        Shown([a, b, c], [0.9, 0.5, 0.4], [40, 41, 42], [50, 2]),
        Shown([b], [0.7], [43, 44, 45, 46, 47], [51, 52, 53, 2]),
        Shown([c, a], [0.8, 0.8], [48], [54, 2]),
    ]


def changed(reader: TrainedReader) -> TrainedReader:
    """With LoRA's B not zero, as after training."""
    torch.manual_seed(1)
    for name, parameter in reader.parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return reader


def test_a_padded_batch_has_the_loss_of_its_rows_alone(lm: LanguageModel, encoder: Encoder) -> None:
    reader = changed(TrainedReader(lm, 2, 0, encoder.prefix))
    rows = shown(encoder)
    together = reader.loss(rows)
    alone = [reader.loss([row]) for row in rows]
    assert together.tokens == sum(one.tokens for one in alone) == 8
    assert together.read == 17
    total = sum(float(one.total.detach()) for one in alone)
    assert float(together.total.detach()) == pytest.approx(total, rel=1e-4)


def test_the_loss_is_that_of_the_answer_and_its_end(lm: LanguageModel, encoder: Encoder) -> None:
    reader = TrainedReader(lm, 2, 0, encoder.prefix)
    row = shown(encoder)[0]
    memories = compose([row.memories], lm.rotary, encoder.prefix)
    memories = memories.preferring(gains([list(row.relevances)], reader.preference.detach()))
    with torch.no_grad(), injected(lm.model, memories):
        ids = torch.tensor([[*row.tail, *row.answer]])
        logits = lm.model(input_ids=ids, position_ids=memories.positions(5)).logits[0]
    expected = cross_entropy(logits[2:4], torch.tensor(row.answer), reduction="sum")
    assert float(reader.loss([row]).total.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_only_low_rank_changes_and_the_preference_learn(
    lm: LanguageModel, encoder: Encoder
) -> None:
    reader = changed(TrainedReader(lm, 2, 0, encoder.prefix))
    reader.loss(shown(encoder)).total.backward()
    for name, parameter in reader.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name)
    assert reader.preference.grad is not None
    assert float(reader.preference.grad) != 0
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_the_base_model_is_unchanged_bit_for_bit(lm: LanguageModel, encoder: Encoder) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    before = lm.model(ids).logits.clone()
    memory = encoder.encode(CHUNKS)[0].keys.clone()
    reader = changed(TrainedReader(lm, 2, 0, encoder.prefix))
    reader.loss(shown(encoder)).total.backward()
    merged = reader.adapter("m", "p", "memory", "int8").merged(lm)
    assert torch.equal(lm.model(ids).logits, before)
    assert torch.equal(encoder.encode(CHUNKS)[0].keys, memory)
    assert not torch.equal(merged.model(ids).logits, before)


def test_the_merged_model_reads_as_the_trained_one(lm: LanguageModel, encoder: Encoder) -> None:
    reader = changed(TrainedReader(lm, 2, 0, encoder.prefix))
    merged = reader.adapter("m", "p", "memory", "int8").merged(lm)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = reader.model(ids).logits
    assert torch.allclose(merged.model(ids).logits, expected, atol=1e-4)
    assert merged.model.model.embed_tokens.weight is lm.model.model.embed_tokens.weight


def test_distillation_is_nothing_where_reader_and_teacher_agree(
    lm: LanguageModel, encoder: Encoder
) -> None:
    reader = TrainedReader(lm, 2, 0, encoder.prefix)
    row = shown(encoder)[1]  # one memory is text in the prompt
    same = reader.loss([replace(row, teacher=row.memories)])
    assert float(same.total.detach()) == pytest.approx(0, abs=1e-4)
    taught = replace(row, teacher=encoder.encode([[60, 61, 62, 63]]))
    other = reader.loss([taught])
    assert float(other.total.detach()) > 0.01
    assert float(reader.loss([replace(row, teacher=[])]).total.detach()) > 0.01


def test_rows_with_and_without_a_teacher_add_up(lm: LanguageModel, encoder: Encoder) -> None:
    reader = TrainedReader(lm, 2, 0, encoder.prefix)
    rows = shown(encoder)
    mixed = [rows[0], replace(rows[1], teacher=[]), rows[2]]
    apart = [reader.loss([row]) for row in mixed]
    together = reader.loss(mixed)
    assert float(together.total.detach()) == pytest.approx(
        sum(float(one.total.detach()) for one in apart), rel=1e-4
    )
    assert together.tokens == sum(one.tokens for one in apart)


def test_what_is_trained_is_kept_in_float32_whatever_the_model_computes_in() -> None:
    lm = LanguageModel(tiny("llama", torch.bfloat16), None)
    reader = TrainedReader(lm, 2, 0, None)
    assert {parameter.dtype for parameter in reader.parameters().values()} == {torch.float32}
