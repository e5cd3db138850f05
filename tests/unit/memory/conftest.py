"""A tiny model of every family that is supported."""

import pytest

from app.memory.model.load import LanguageModel
from tests.unit.memory.families import FAMILIES, lm_of, tiny


@pytest.fixture(params=list(FAMILIES))
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return lm_of(tiny(request.param))
