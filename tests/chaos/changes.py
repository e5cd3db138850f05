"""What people do meanwhile: documents are made, edited, moved about and deleted, by API and SQL.

Every text carries a word that no other text has, so that a trace of a deleted one can be found.
"""

import contextlib
import random
import threading
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from app.access.tenants import Bank
from app.bank import documents
from app.bank.documents import Draft
from app.bank.session import Asker, transaction
from app.errors import NotFoundError, UnavailableError
from app.ingest.service import pieces_of
from app.runtime import count_tokens

_SENTENCES = (
    "The badge of a visitor is {word} and is worn on the chest.",
    "Whoever is ill for more than {word} days brings a certificate.",
    "The kitchen on floor {word} is open from nine to five.",
    "Laptops are replaced after {word} months, phones after two years.",
)
_PAUSE = 0.1
_IDS = 12
"""Documents of each writer, so that edits and deletions meet work that is going on."""


@dataclass
class Writer:
    """One connection's worth of changes. `words` are those that it ever tried to write."""

    number: int
    bank: Bank
    seed: str
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
        how = chance.choice((self._store, self._store, self._upsert, self._edit, self._delete))
        how(name, chance)

    def _store(self, name: str, chance: random.Random) -> None:
        body = self._text(chance)
        draft = Draft(name, f"{name}.md", "Handbook", body, None, {})
        pieces = pieces_of(draft.title, body, count_tokens)
        documents.store(self.bank.tenant, self.bank.id, draft, pieces)

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
            documents.forget(self.bank.tenant, name)

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
