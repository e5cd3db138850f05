"""What people do meanwhile: documents are made, edited and deleted, by the program, by SQL and by
the HTTP service.

Every text carries a word that no other text has, so that a trace of a deleted one can be found.
"""

import contextlib
import http
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from sqlalchemy import text

from app.bank.documents import Draft
from app.bank.find import Bank
from app.db.session import Asker, transaction
from app.errors import NotFoundError, UnavailableError
from app.ingest.storing import pieces_of
from app.runtime.identity import count_tokens
from tests import edges

_SENTENCES = (
    "The badge of a visitor is {word} and is worn on the chest.",
    "Whoever is ill for more than {word} days brings a certificate.",
    "The kitchen on floor {word} is open from nine to five.",
    "Laptops are replaced after {word} months, phones after two years.",
)
_PURPOSE = {"purpose": "assistants"}
_PAUSE = 0.1
_IDS = 12
"""Documents of each writer, so that edits and deletions meet work that is going on."""


_LATER = {http.HTTPStatus.SERVICE_UNAVAILABLE, http.HTTPStatus.TOO_MANY_REQUESTS}


@dataclass
class Client:
    """One that uploads files to the HTTP service, which may be away, and deletes them again."""

    url: Callable[[], str | None]
    key: str
    store: str
    files: list[str] = field(default_factory=list)

    def upload(self, name: str, body: str) -> None:
        sent = self._call("POST", "/files", data=_PURPOSE, files={"file": (f"{name}.md", body)})
        self.files.append(sent["id"])
        self._call("POST", f"/vector_stores/{self.store}/files", json={"file_id": sent["id"]})

    def describe(self, chance: random.Random) -> None:
        """Change what nothing is encoded for."""
        if self.files:
            path = f"/vector_stores/{self.store}/files/{chance.choice(self.files)}"
            self._call("POST", path, json={"attributes": {"turn": chance.random()}})

    def delete(self, chance: random.Random) -> None:
        if self.files:
            file = chance.choice(self.files)
            self._call("DELETE", f"/files/{file}")
            self.files.remove(file)

    def _call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Raises UnavailableError where the service or what it needs is away."""
        url = self.url()
        if url is None:
            raise UnavailableError("the service does not run at the moment")
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            answer = httpx.request(method, f"{url}/v1{path}", headers=headers, timeout=60, **body)
        except httpx.TransportError as error:
            raise UnavailableError(f"the service went away: {error}") from error
        if answer.status_code in _LATER:
            raise UnavailableError(answer.text)
        if answer.status_code != http.HTTPStatus.NOT_FOUND:  # deleted, or never put in
            answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told


@dataclass
class Writer:
    """One connection's worth of changes. `words` are those that it ever tried to write."""

    number: int
    bank: Bank
    seed: str
    client: Client
    words: list[str] = field(default_factory=list)
    done: int = 0
    failed: BaseException | None = None

    def run(self, over: threading.Event) -> None:
        """Change one thing after the other until it is over. What meets a dead server is left."""
        chance = random.Random(f"{self.seed}:{self.number}")
        try:
            while not over.wait(_PAUSE):
                with contextlib.suppress(UnavailableError):
                    self._change(chance)
                    self.done += 1
        except BaseException as error:
            self.failed = error

    def _change(self, chance: random.Random) -> None:
        name = f"w{self.number}-{chance.randrange(_IDS)}"
        by_program = (self._store, self._store, self._upsert, self._edit, self._delete)
        by_http = (self._upload, self._upload, self._describe, self._remove)
        chance.choice((*by_program, *by_http))(name, chance)

    def _upload(self, name: str, chance: random.Random) -> None:
        if len(self.client.files) < _IDS:
            self.client.upload(f"file of {name}", self._text(chance))

    def _describe(self, _: str, chance: random.Random) -> None:
        self.client.describe(chance)

    def _remove(self, _: str, chance: random.Random) -> None:
        self.client.delete(chance)

    def _store(self, name: str, chance: random.Random) -> None:
        body = self._text(chance)
        draft = Draft(name, f"{name}.md", "Handbook", body, None, {})
        pieces = pieces_of(draft.title, body, count_tokens)
        edges.store(self.bank.tenant, self.bank.id, draft, pieces)

    def _upsert(self, name: str, chance: random.Random) -> None:
        self._sql(
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
            " VALUES (:tenant, :bank, :id, 'psql', 'Handbook', :text, '')"
            " ON CONFLICT (tenant_id, bank_id, id) DO UPDATE SET text = excluded.text",
            name,
            text=self._text(chance),
        )

    def _edit(self, name: str, chance: random.Random) -> None:
        self._sql(
            "UPDATE document SET text = text || E'\\n\\n' || :text"
            " WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id AND length(text) < 2000",
            name,
            text=self._paragraph(chance),
        )

    def _delete(self, name: str, chance: random.Random) -> None:
        if chance.random() < 0.5:
            self._sql(
                "DELETE FROM document WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id",
                name,
            )
            return
        with contextlib.suppress(NotFoundError):  # it is not there at the moment
            edges.forget(self.bank.tenant, name)

    def _sql(self, statement: str, name: str, **more: Any) -> None:
        values = {"tenant": self.bank.tenant, "bank": self.bank.id, "id": name, **more}
        with transaction(Asker("admin")) as connection:
            connection.execute(text(statement), values)

    def _text(self, chance: random.Random) -> str:
        return "\n\n".join(self._paragraph(chance) for _ in range(chance.randint(1, 4)))

    def _paragraph(self, chance: random.Random) -> str:
        word = f"q{chance.getrandbits(64):016x}"
        self.words.append(word)
        # Long enough that a document has several chunks.
        return " ".join(s.format(word=word) for s in _SENTENCES)
