"""Log lines of worker, relay and HTTP service: one line each, no text, no secrets.

What a request leaves is in app/api/http/watch.py.
"""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Write to stderr, from `level` on."""
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
    # The one repeats what tools were told, the other says the same at every look at the schema.
    for name in ("mcp", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
