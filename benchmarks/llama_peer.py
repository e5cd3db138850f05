"""llama.cpp, for comparison: run by a Python that has llama-cpp-python, without Membank's code.

    python llama_peer.py FILE.gguf [THREADS]

Each line on stdin is {"prompt": token ids or text, "max_tokens": number}; each line on stdout is
{"first_token_ms", "total_ms", "tokens"} of a greedy answer. The model is loaded once, and nothing
is reused from one prompt to the next. An end token does not end an answer, so that all answers have
the same length.
"""

import json
import os
import sys
import time
from typing import Any

_WINDOW = 8192


def main() -> None:
    from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

    file, *threads = sys.argv[1:]
    # llama.cpp's default is half of the processors, which is slower when there are two.
    n_threads = int(threads[0]) if threads else os.cpu_count()
    model = Llama(
        file, n_ctx=_WINDOW, n_threads=n_threads, n_threads_batch=n_threads, verbose=False
    )
    for line in sys.stdin:
        print(json.dumps(_complete(model, json.loads(line))), flush=True)


def _complete(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    prompt = request["prompt"]
    if isinstance(prompt, str):
        prompt = model.tokenize(prompt.encode(), special=True)
    model.reset()
    started = time.perf_counter()
    model.eval(prompt)
    tokens = [int(model.sample(temp=0.0))]
    first = time.perf_counter()
    while len(tokens) < request["max_tokens"]:
        model.eval(tokens[-1:])
        tokens.append(int(model.sample(temp=0.0)))
    total = time.perf_counter()
    return {
        "first_token_ms": (first - started) * 1000,
        "total_ms": (total - started) * 1000,
        "tokens": tokens,
    }


if __name__ == "__main__":
    main()
