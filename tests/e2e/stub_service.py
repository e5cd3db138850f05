"""Stands for worker, relay or HTTP service where only their supervision is tested: it says that it
is ready, and ends when it is told to."""

import signal
import sys


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("the stub is ready. event=started", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
