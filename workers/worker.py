"""The encoding worker: a Celery worker that runs one task at a time in its own process.

Each process holds one copy of the model; for more workers, start more processes. Celery's solo
pool has no children that could outlive a killed parent.
"""

import threading

import structlog

from app.db.schema import await_safe
from app.process.console import quiet
from app.process.log import configure
from app.runtime.identity import profile
from app.settings import settings
from workers.app import app, queue_of


def main() -> None:
    """Run until SIGTERM; then finish the current batch and leave the rest in the outbox."""
    quiet()
    configure(settings().log_level)
    await_safe(structlog.get_logger("worker"), threading.Event(), "worker")
    app.worker_main(
        [
            "worker",
            "--pool=solo",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            f"--queues={queue_of(profile().id)}",
            f"--loglevel={settings().log_level}",
        ]
    )


if __name__ == "__main__":
    main()
