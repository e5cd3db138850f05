"""README's commands and programs, as they are printed and in their order, in one shell."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STEP, _FAILED = "=== step ", "FAILED in README:"

# The one run takes two minutes, and many more where others compute too.
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Run:
    """What the shell said of each block, and how it ended."""

    code: int
    blocks: list[str]
    errors: str


def script(text: str) -> str:
    """All blocks of a page as one shell script, which ends with the first command that fails."""
    parts = [
        "set -eE -o pipefail",
        f"trap 'echo \"{_FAILED} $BASH_COMMAND\" >&2' ERR",
    ]
    for number, (language, block) in enumerate(_BLOCK.findall(text)):
        parts.append(f"echo '{_STEP}{number}'")
        parts.append(block if language == "bash" else f"python - <<'PROGRAM'\n{block}PROGRAM")
    return "\n".join(parts) + "\n"


def shell(text: str, folder: Path) -> Run:
    """Run a page's blocks in a folder that has the repository's .venv and its handbooks.

    A link to all of `app` would be imported from there, since the folder is the working one.
    """
    (folder / "app" / "demo").mkdir(parents=True)
    (folder / "app" / "demo" / "handbooks").symlink_to(ROOT / "app" / "demo" / "handbooks")
    (folder / ".venv").symlink_to(sys.prefix)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MEMBANK_", "OPENAI_"))}
    done = subprocess.run(
        ["bash", "-c", script(text)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    said = re.split(rf"^{_STEP}\d+\n", done.stdout, flags=re.MULTILINE)[1:]
    return Run(done.returncode, said, done.stderr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("readme")
    try:
        yield shell(README, folder)
    finally:
        subprocess.run(
            [sys.executable, "-m", "app.cli", "down"],
            env={k: v for k, v in os.environ.items() if not k.startswith("MEMBANK_")}
            | {"PYTHONPATH": str(ROOT), "MEMBANK_HOME": str(folder / ".membank")},
            check=False,
            timeout=120,
        )


def test_every_command_succeeds_in_the_order_of_the_page(run: Run) -> None:
    assert run.code == 0, run.errors[-2000:]
    assert len(run.blocks) == len(_BLOCK.findall(README))


def test_what_the_page_promises_is_seen(run: Run) -> None:
    commands, client, down, library = run.blocks
    assert "27\n" in commands
    assert "source: Annual Leave" in commands
    assert "four" in commands
    assert "UPDATE 1" in commands
    assert "12" in client
    assert "sick-leave.md" in client
    assert "postgres" in down
    assert "orange" in library


def test_who_may_not_read_a_document_does_not_find_it(run: Run) -> None:
    found = run.blocks[0]
    assert "Company Pension" in found  # what comes instead
    assert "Salary Bands" not in found
    assert "58,000" not in found


@pytest.mark.parametrize("line", ["ls nothing", "ls nothing | cat"])
def test_a_command_that_fails_ends_the_page_and_is_named(tmp_path: Path, line: str) -> None:
    page = f"```bash\n. .venv/bin/activate\n{line}\necho 'not reached'\n```\n"
    done = shell(page, tmp_path)
    assert done.code != 0
    assert f"{_FAILED} {line.rpartition(' | ')[2]}" in done.errors
    assert "not reached" not in done.blocks[0]


def test_a_program_that_fails_ends_the_page(tmp_path: Path) -> None:
    page = "```bash\n. .venv/bin/activate\n```\n```python\nraise SystemExit(3)\n```\n"
    assert shell(page, tmp_path).code == 3
