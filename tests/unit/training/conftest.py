"""A tiny model that reads words, and a small file of questions over passages."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.evaluation.corpus import Corpus, Piece
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from app.memory.model.prompt import Prompt
from app.training.data import Row
from app.training.examples import Examples
from tests.unit.memory.families import tiny


class Words:
    """A tokenizer whose tokens are characters."""

    chat_template = None
    bos_token = ""
    eos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool = False) -> Any:
        return type("Ids", (), {"input_ids": [3 + ord(c) % 90 for c in text]})

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(ord("a") + token % 26) for token in tokens if token > 2)


PROMPT = Prompt(Words(), "", "facts: ", " q ", " a ")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More of them take longer with tensors as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lm() -> LanguageModel:
    model = tiny("llama")
    return LanguageModel(model, Words())


@pytest.fixture
def encoder(lm: LanguageModel) -> Encoder:
    return Encoder(lm, PROMPT.prefix)


def vectors(texts: list[str]) -> Tensor:
    """A direction for each text, the same each time."""
    rows = []
    for text in texts:
        generator = torch.Generator().manual_seed(sum(map(ord, text)))
        rows.append(torch.randn(8, generator=generator))
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def rows_of(n: int) -> list[dict[str, Any]]:
    """Questions whose answer is a letter that stands in their own passage."""
    chance = random.Random(0)
    found = []
    for number in range(n):
        letter = chance.choice("bcdefg")
        passage = {"id": f"p{number}", "title": f"T{number}", "text": f"item {number} is {letter}"}
        found.append(
            {
                "id": f"q{number}",
                "question": f"item {number}?",
                "answers": [letter],
                "passages": [passage],
                "gold": [passage["id"]],
                "split": "valid" if number % 5 == 0 else "train",
            }
        )
    return found


def written(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return file


def examples(n: int = 40, seed: int = 0) -> tuple[Examples, Corpus]:
    rows = rows_of(n)
    pieces = [Piece(row["gold"][0], row["passages"][0]["text"]) for row in rows]
    corpus = Corpus(pieces, vectors([piece.text for piece in pieces]))
    asked = [Row(r["id"], r["question"], tuple(r["answers"]), tuple(r["gold"])) for r in rows]
    return Examples(corpus, asked, vectors([row.question for row in asked]), seed), corpus
