"""The revisions of the schema, and which of them this version's code works with.

A revision whose number is whole (0002) runs after its version is deployed: code of the version
before does not work with it. One in between (0001_1) runs before: that code goes on with it, even
though it does not know the revision. So the number alone says what fits.
"""

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

MIGRATIONS = Path(__file__).parents[2] / "migrations"


def alembic_config() -> Config:
    """Alembic's settings without its file, so that it runs from any folder."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def known() -> list[str]:
    """Every revision that this version brings, in their order."""
    script = ScriptDirectory.from_config(alembic_config())
    return [revision.revision for revision in script.walk_revisions()][::-1]


def missing(current: str | None) -> list[str]:
    """What this version brings and a database at `current` lacks. Nothing where the database is of
    a newer version."""
    chain = known()
    if current is None:
        return chain
    return chain[chain.index(current) + 1 :] if current in chain else []


def before_deployment(current: str | None) -> list[str]:
    """What of the missing ones can run while the version serves that is there now."""
    if current is None:
        return known()
    found = []
    for revision in missing(current):
        if not _is_before(revision):
            break
        found.append(revision)
    return found


def fits(current: str | None) -> bool:
    """Whether this version's code works with a database at `current`."""
    chain = known()
    if current in chain:
        return not any(_is_before(revision) for revision in missing(current))
    return current is not None and _is_before(current) and _version(current) == _version(chain[-1])


def _is_before(revision: str) -> bool:
    return "_" in revision


def _version(revision: str) -> str:
    return revision.partition("_")[0]
