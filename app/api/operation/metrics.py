"""/metrics: what app/process/metrics.py counts, and what is read at the moment of asking."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from app.answer.cache import cache
from app.api.operation.health import Health

router = APIRouter(tags=["operation"])
_WAIT = 2.0


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus's text format."""
    state = request.app.state
    # Not one of the threads that requests wait for.
    said = await asyncio.get_running_loop().run_in_executor(
        None, _exposition, state.generates, state.health
    )
    return Response(said, media_type=CONTENT_TYPE_LATEST)


class Moment:
    """The state of engine, cache tiers and queue now. What does not answer is left out."""

    def __init__(self, generates: Any, health: Health) -> None:
        self._generates, self._health = generates, health

    def collect(self) -> Iterable[Metric]:
        yield from self._engine()
        yield from _cache()
        yield from self._queue()

    def _engine(self) -> Iterator[Metric]:
        stats = getattr(self._generates, "stats", None)
        if stats is None:
            return
        for name, value in stats().items():
            yield _gauge(f"membank_engine_{name}", f"The engine's {name}, of this process.", value)

    def _queue(self) -> Iterator[Metric]:
        try:
            backlog = self._health.backlog.seen().result(_WAIT)
        except Exception:  # a scrape shows the rest
            return
        for name, told in _QUEUE.items():
            yield _gauge(f"membank_queue_{name}", told, backlog[name])
        if "failed" in backlog:
            yield _gauge("membank_queue_failed", "Work given up, all tenants.", backlog["failed"])


_QUEUE = {
    "pending": "Due work of this service's profile, all tenants.",
    "encoding": "Work of it that workers hold.",
    "oldest_seconds": "Age of the oldest due work of it.",
}


def _exposition(generates: Any, health: Health) -> bytes:
    now = CollectorRegistry()
    now.register(Moment(generates, health))
    return generate_latest(REGISTRY) + generate_latest(now)


def _cache() -> Iterator[Metric]:
    """Counters of each tier of memories."""
    families: dict[str, GaugeMetricFamily] = {}
    for tier, counters in cache().stats().items():
        for name, value in counters.items():
            told = f"{name} of each tier of memories (app/answer/cache.py)."
            family = families.setdefault(
                name, GaugeMetricFamily(f"membank_cache_{name}", told, labels=["tier"])
            )
            family.add_metric([tier], value)
    yield from families.values()


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)
