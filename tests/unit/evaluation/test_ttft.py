"""The table of first tokens, and llama.cpp's process beside it."""

import json
import re
import sys
from pathlib import Path

import pytest

from app.errors import UsageError
from app.process import console
from app.settings import settings
from benchmarks import peer, ttft
from benchmarks.peer import Peer, PeerError
from benchmarks.ttft import Plan, Row

ANSWERING = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert asked["max_tokens"] == 1
    answer = {"first_token_ms": len(asked["prompt"]), "total_ms": 9.0, "tokens": 1}
    print(json.dumps(answer), flush=True)
"""


def row(first: float) -> Row:
    return Row(first, 1.0, 2.0, 3.0, 40, 50)


def test_a_plan_repeats_questions_and_takes_each_k_once() -> None:
    plan = Plan.of(["a", "b"], 3, [5, 1, 5])
    assert plan.questions == ["a", "b", "a"]
    assert plan.ks == [5, 1]
    with pytest.raises(UsageError, match="-k is 0"):
        Plan.of(["a"], 3, [1, 0])
    with pytest.raises(UsageError, match="-n is 0"):
        Plan.of(["a"], 0, [1])


def test_one_table_holds_every_k_and_the_ratios_to_both_peers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    peers = {ttft.GENERATE: row(60.0), ttft.LLAMA: row(400.0)}
    rows = {"memory": row(10.0), "rag": row(25.0), **peers}
    ttft.report({1: rows, 20: rows}, 7)
    lines = capsys.readouterr().out.splitlines()
    memory = [line for line in lines if "memory" in line and "x" in line]
    assert len(memory) == 2
    assert all(re.search(r"2\.5x.*6\.0x.*40\.0x", line) for line in memory)
    ttft.report({1: {"memory": row(10.0), "rag": row(25.0)}}, 7, "not installed: pip install it")
    assert "llama.cpp rag: not installed: pip install it" in capsys.readouterr().out


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Python without the package and weights that nobody reads."""
    monkeypatch.setattr(peer, "weights", lambda: tmp_path / "model.gguf")
    return tmp_path


def script(folder: Path, text: str) -> Path:
    (folder / "peer.py").write_text(text)
    return folder / "peer.py"


def python(folder: Path, has_llama: bool) -> Path:
    """An interpreter that has, or has not, a module of the package's name."""
    (folder / "llama_cpp.py").write_text("" if has_llama else "raise ImportError")
    made = folder / "python"
    made.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    made.chmod(0o755)
    return made


def test_the_peer_answers_in_its_own_process(weights: Path) -> None:
    with Peer(python(weights, True), script(weights, ANSWERING)) as running:
        assert running.first_token_ms([1, 2, 3]) == 3.0
        assert running.first_token_ms([1] * 5000) == 5000.0


@pytest.mark.parametrize("text", ["", "print('no JSON', flush=True)", "print('{}', flush=True)"])
def test_a_peer_without_an_answer_is_no_peer(weights: Path, text: str) -> None:
    with pytest.raises(PeerError, match="gave no answer"):
        Peer(python(weights, True), script(weights, text))


def test_a_peer_that_is_not_installed_says_how_it_would_be(weights: Path) -> None:
    with pytest.raises(PeerError, match="not installed: pip install llama-cpp-python"):
        Peer(python(weights, False))
    with pytest.raises(PeerError, match="none does not run"):
        Peer(weights / "none")


def test_there_is_no_peer_for_a_model_without_a_gguf_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMBANK_MODEL", "some/other")
    settings.cache_clear()
    try:
        with pytest.raises(PeerError, match="no GGUF file is known for some/other"):
            peer.weights()
    finally:
        settings.cache_clear()


def test_json_keeps_one_ks_fields_and_adds_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"memory": row(10.0), "rag": row(25.0)}
    found = json.loads(json.dumps(ttft.summary({5: rows, 20: rows}, 7, None)))
    assert (found["n"], found["k"], found["modes"]["memory"]["first_token_ms"]) == (7, 5, 10.0)
    assert [one["k"] for one in found["by_k"]] == [5, 20]
