"""The real worker, except that two texts are poison to it: one raises, one kills the process."""

import os
import signal
from collections.abc import Sequence

RAISES, KILLS = "hemlock", "nightshade"


def main() -> None:
    from workers import encoding, worker  # they ask for the stack's Valkey

    whole = encoding._encode

    def encode(texts: Sequence[str]) -> list[tuple[list[float], bytes]]:
        if any(KILLS in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(RAISES in text for text in texts):
            raise ValueError("the encoder does not like this text")
        return whole(texts)

    encoding._encode = encode
    worker.main()


if __name__ == "__main__":
    main()
