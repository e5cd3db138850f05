"""Logging for the worker, the relay and the HTTP service: one line an event, with no document text
and no secrets.

app/api/http/watch.py says what is logged about a request.
"""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Log to stderr, from `level` upwards."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    # mcp repeats what tools were asked; alembic logs the same lines at every schema check.
    for name in ("mcp", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
