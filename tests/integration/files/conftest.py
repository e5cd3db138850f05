"""The service over a database, and OpenAI's client of its people."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types import VectorStore

from app.api.application import create
from tests.conftest import Company
from tests.edges import issue
from tests.serving import served
from tests.uploads import (
    Client,
)


@pytest.fixture
def address(database: str) -> Iterator[str]:
    """Of the service, in a thread of this process."""

    def generates(*_: object, **__: object) -> Any:
        raise AssertionError("nobody asks here")

    with served(create(generates)) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(address: str, company: Company) -> Iterator[Client]:
    """OpenAI's client of a principal, made if need be, with a key of its own."""
    with contextlib.ExitStack() as open_ones:

        def make(
            name: str, *groups: str, scopes: tuple[str, ...] = ("read", "write"), of: Any = company
        ) -> OpenAI:
            of.reader(name, *groups)
            key = issue(of.name, name, scopes=scopes).token
            made = OpenAI(base_url=address, api_key=key, max_retries=0)
            return open_ones.enter_context(made)

        yield make


@pytest.fixture
def alice(client: Client) -> OpenAI:
    return client("alice")


@pytest.fixture
def store(alice: OpenAI) -> VectorStore:
    return alice.vector_stores.create(name="notes")
