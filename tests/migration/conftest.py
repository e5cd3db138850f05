"""Revisions that there are not yet, in a copy of the folder of migrations."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from app.db import revisions
from app.db.addresses import database_url
from app.db.session import outside

REVISION = """
from alembic import op

revision = {revision!r}
down_revision = {previous!r}


def upgrade() -> None:
    op.execute({up!r})


def downgrade() -> None:
    op.execute({down!r})
"""


@contextlib.contextmanager
def alembic() -> Iterator[Config]:
    """Alembic's settings with a connection of the owner."""
    with outside(database_url("owner")) as connection:
        config = revisions.alembic_config()
        config.attributes["connection"] = connection
        yield config


def move(revision: str) -> None:
    """To another revision, up or down, or as many of them as "-1" says."""
    chain = revisions.known()
    with alembic() as config:
        if revision in ("base", "-1"):
            command.downgrade(config, revision)
        else:
            assert revision in chain
            command.upgrade(config, revision)


class Migrations:
    """A copy of `migrations` in which a next version is being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schema = folder / "schema"

    def add(self, revision: str, up: str, down: str = "SELECT 1") -> None:
        """One more revision, by the steps of CONTRIBUTING.md: first the copy for revision 0001."""
        as_it_was = self.folder / "versions/0001"
        if not as_it_was.is_dir():
            shutil.copytree(self.schema, as_it_was)
        previous = revisions.known()[-1]
        source = REVISION.format(revision=revision, previous=previous, up=up, down=down)
        (self.folder / f"versions/{revision}_next.py").write_text(source)

    def edit(self, part: str, old: str, new: str) -> None:
        file = self.schema / f"{part}.sql"
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new))

    def append(self, part: str, statement: str) -> None:
        with (self.schema / f"{part}.sql").open("a") as file:
            file.write(statement)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Be the version before while the block runs: its folder has none of the new revisions."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(revisions, "MIGRATIONS", OURS)
            yield


OURS = revisions.MIGRATIONS


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migrations:
    folder = tmp_path / "migrations"
    shutil.copytree(OURS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(revisions, "MIGRATIONS", folder)
    return Migrations(folder)
