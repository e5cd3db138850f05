"""The program on a tiny model, loaded from folders as any model is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, PreTrainedTokenizerFast

from app.runtime import identity
from app.runtime import models as runtime
from app.settings import settings
from tests.unit.memory.families import SMALL, made, uneven

_WORDS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,:?#", "item", "is"]


def tokenizer() -> Any:
    """A token for each word that questions and prompts are made of, one for all others."""
    known = ["[UNK]", "<s>", "</s>", "[PAD]", "Question", "Answer", *_WORDS]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", pad_token="[PAD]"
    )


def _language_model(folder: Path) -> None:
    model = uneven(made(LlamaConfig(**{**SMALL, "hidden_size": 64, "eos_token_id": 2})))
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _embedder(folder: Path) -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    config = BertConfig(vocab_size=97, hidden_size=32, intermediate_size=32, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    _language_model(folder / "lm")
    _embedder(folder / "embedder")
    return folder


@pytest.fixture
def program(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings that name the tiny models; what is encoded goes to a folder of the test's own."""
    (tmp_path / "models").mkdir()
    native = home / "native"
    native.mkdir(exist_ok=True)
    (tmp_path / "models" / "native").symlink_to(native)
    for name, value in {
        "MEMBANK_MODEL": home / "lm",
        "MEMBANK_EMBEDDER": home / "embedder",
        "MEMBANK_MODELS": tmp_path / "models",
        "MEMBANK_CODEC": "int8",
        "MEMBANK_ADAPTER": "none",
        "MEMBANK_WEIGHTS": "int8",
    }.items():
        monkeypatch.setenv(name, str(value))
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def forget() -> None:
    """What this process has loaded."""
    settings.cache_clear()
    for module in (identity, runtime):
        for one in vars(module).values():
            if hasattr(one, "cache_clear") and one.__module__ == module.__name__:
                one.cache_clear()
