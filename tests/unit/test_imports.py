"""What stores, queues and finds starts without the libraries of models, which take seconds."""

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = [
    *("access", "bank", "commands", "db", "ingest", "process", "queue", "search", "store"),
    *("upkeep", "vault"),
]
MODULES = ["app.cli", "app.errors", "app.settings", "app.runtime.identity", "app.memory.profile"]
LATER = "app.commands.demo"
"""The command's body, which its command imports when it is called."""
HEAVY = ("torch", "transformers", "peft", "accelerate")
PROGRAM = """
import sys
from importlib import import_module
for name in sys.argv[1].split():
    import_module(name)
    loaded = [one for one in {heavy!r} if one in sys.modules]
    if loaded:
        sys.exit(f"{{name}} loads {{', '.join(loaded)}}")
{then}
"""


def modules() -> list[str]:
    found = list(MODULES)
    for package in PACKAGES:
        name = f"app.{package}"
        path = import_module(name).__path__
        found += [name, *(one.name for one in pkgutil.walk_packages(path, f"{name}."))]
    return [name for name in found if name != LATER]


def run(names: list[str], then: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(heavy=HEAVY, then=then)
    return subprocess.run(
        [sys.executable, "-c", program, " ".join(names)], capture_output=True, text=True
    )


def test_modules_without_models_load_neither_torch_nor_transformers() -> None:
    names = modules()
    assert len(names) > 60
    done = run(names)
    assert done.returncode == 0, done.stderr


def test_a_module_that_loads_torch_is_found_out() -> None:
    done = run(["app.errors", "app.memory.kv"])
    assert done.stderr.strip() == "app.memory.kv loads torch"


@pytest.mark.parametrize("codec", ["auto", "int8"])
def test_the_profile_is_told_without_torch(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMBANK_CODEC", codec)
    from app.runtime.models import codec as loaded

    then = (
        "from app.runtime.identity import codec_name\n"
        "print(codec_name().name, 'torch' in sys.modules)"
    )
    done = run(["app.runtime.identity"], then)
    assert done.returncode == 0, done.stderr
    name, torch = done.stdout.split()
    assert torch == "False"
    assert name == ("int8" if codec == "int8" else loaded().name)
