"""What tests of files and vector stores do with OpenAI's client, and as a worker."""

from collections.abc import Callable
from typing import Any

from openai import OpenAI
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile

from app.db.session import Asker
from app.queue import outbox
from app.queue.outbox import Work
from app.runtime.identity import profile
from tests.conftest import PROFILE, ask, work_off
from workers.uploads import store as read

NOTES = "# Badges\n\nThe badge of the harbor is orange.\n"

Client = Callable[..., OpenAI]


def upload(client: OpenAI, name: str = "notes.md", content: str | bytes = NOTES) -> str:
    data = content.encode() if isinstance(content, str) else content
    return client.files.create(file=(name, data), purpose="assistants").id


def attach(client: OpenAI, store: VectorStore, file: str, **how: Any) -> VectorStoreFile:
    """Put a file into a bank, and store it as a worker does; no chunk is encoded."""
    files = client.vector_stores.files
    made = files.create(vector_store_id=store.id, file_id=file, **how)
    assert (made.id, made.status, made.last_error) == (file, "in_progress", None)
    read_waiting()
    return files.retrieve(file, vector_store_id=store.id)


def read_waiting() -> None:
    """Store all files that wait."""
    for each in (profile().id, PROFILE):
        work = outbox.claim(each, 1000, 60.0)
        outbox.release([one for one in work if one.file is None])
        read([one for one in work if one.file is not None])


def waiting_file() -> Work:
    """The lease of the one file that waits."""
    [work] = outbox.claim(profile().id, 10, 60.0)
    assert work.file is not None
    return work


def json_of(client: OpenAI) -> dict[str, str]:
    """Headers of a request whose body the client would not write."""
    return {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}


def encode() -> int:
    return work_off(profile=profile().id)


def documents(store: VectorStore, asker: Asker, column: str = "id") -> list[Any]:
    rows = ask(
        asker,
        f"SELECT {column} FROM document WHERE bank_id = :bank ORDER BY id",
        bank=int(store.id.removeprefix("vs_")),
    )
    return [row[0] for row in rows]
