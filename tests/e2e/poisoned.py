"""The real worker, except that two texts are poison to it: one raises, one kills the process."""

import os
import signal
from collections.abc import Sequence

from app.queue.outbox import ChunkText

RAISES, KILLS = "hemlock", "nightshade"


def main() -> None:
    from workers import encoding, worker  # they ask for the stack's Valkey

    whole = encoding._encode

    def encode(chunks: Sequence[ChunkText]) -> list[tuple[list[float], bytes]]:
        if any(KILLS in chunk.text for chunk in chunks):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(RAISES in chunk.text for chunk in chunks):
            raise ValueError("the encoder does not like this text")
        return whole(chunks)

    encoding._encode = encode
    worker.main()


if __name__ == "__main__":
    main()
