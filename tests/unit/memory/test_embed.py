"""Keys of texts, beside a plain forward pass of the same embedder."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

from app.errors import ModelError
from app.memory.embed.bert import Bert
from app.memory.embed.embedder import Embedder
from app.memory.model.packaged import embedder_folder
from app.settings import settings

TEXTS = [
    "Every employee of Acme has 27 days of annual leave per year.",
    "",
    "Dogs may come to the office on Fridays only, on a lead, and not into the kitchen. " * 6,
    "Überstunden werden mit 25 % vergütet.",
    "word " * 2000,
]


@pytest.fixture(scope="module")
def folder() -> str:
    return embedder_folder(settings().embedder)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def embedder(folder: str, request: pytest.FixtureRequest) -> Embedder:
    return Embedder(folder, dtype=request.param)


@torch.no_grad()
def plain(folder: str, texts: list[str]) -> Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        rows.append(model(**inputs).last_hidden_state[0].mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def test_keys_are_the_mean_of_the_last_layer(embedder: Embedder, folder: str) -> None:
    made, right = embedder.embed(TEXTS), plain(folder, TEXTS)
    assert made.dtype == torch.float32
    assert made.shape == (len(TEXTS), embedder.dimensions)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(len(TEXTS)))
    assert float((made * right).sum(dim=1).min()) > 0.9998


@pytest.fixture
def small(folder: str) -> BertModel:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    config.update({"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3})
    config.update({"intermediate_size": 80, "vocab_size": 300})
    return BertModel(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2, 17, 512])
def test_layers_written_out_give_the_models_states(small: BertModel, n: int) -> None:
    ids = torch.randint(300, (n,))
    made, right = Bert(small, torch.float32)(ids), small(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(made, right, rtol=0, atol=1e-5)


def test_models_of_another_shape_are_left_to_transformers(small: BertModel) -> None:
    with pytest.raises(ModelError, match="gelu_new"):
        Bert(changed(small, hidden_act="gelu_new"), torch.float32)
    with pytest.raises(ModelError, match="it is a roberta"):
        Bert(changed(small, model_type="roberta"), torch.float32)
    # As a change that the configuration does not tell would show.
    small.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()
    with pytest.raises(ModelError, match="differ"):
        Bert(small, torch.float32)


def changed(model: BertModel, **what: str) -> BertModel:
    other = copy.deepcopy(model)
    for name, value in what.items():
        setattr(other.config, name, value)
    return other


def test_another_embedder_is_computed_by_transformers(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ModelError("of another shape")

    monkeypatch.setattr("app.memory.embed.embedder.Bert", refused)
    made = Embedder(folder, dtype=torch.bfloat16).embed(TEXTS)
    torch.testing.assert_close(made, plain(folder, TEXTS), rtol=0, atol=2e-6)


def test_in_float32_they_are_as_exact_as_it_is(folder: str) -> None:
    made = Embedder(folder).embed(TEXTS)
    torch.testing.assert_close(made, plain(folder, TEXTS), rtol=0, atol=2e-6)


def test_a_key_does_not_depend_on_the_texts_beside_it(embedder: Embedder) -> None:
    together = embedder.embed(TEXTS)
    for text, key in zip(TEXTS, together, strict=True):
        assert torch.equal(embedder.embed([text])[0], key)
    assert torch.equal(embedder.embed(TEXTS[::-1]), together.flip(0))


def test_no_texts_give_no_keys(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimensions)


def test_a_folder_without_a_model_is_named(tmp_path: object) -> None:
    with pytest.raises(ModelError, match=f"embedder {tmp_path} cannot be loaded"):
        Embedder(str(tmp_path))
