"""A tiny model of every family that is supported, and a folder for what is compiled."""

from pathlib import Path

import pytest

from app.memory.model.load import LanguageModel
from tests.unit.memory.families import FAMILIES, lm_of, tiny, uneven


@pytest.fixture(params=list(FAMILIES))
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return lm_of(uneven(tiny(request.param)))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps what is compiled, once for all tests."""
    return tmp_path_factory.mktemp("native")
