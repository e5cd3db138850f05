"""Requests a minute of each tenant, counted in Valkey over all processes of the service."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.db.addresses import redis_url
from app.errors import UsageError

_MINUTE = 60.0
_PATIENCE = 0.25
"""Seconds that a request waits for Valkey at most."""
_AT_ONCE = 8
"""Requests of a process that ask Valkey at a time, each for less than a millisecond."""
_PAUSE = 5.0
"""Seconds in which Valkey is not asked again after it did not answer."""


@dataclass(frozen=True)
class Rate:
    """A tenant's rate after a request: how many more are `left`, and seconds until all are.

    wait: seconds until there is one again, for a request that is one too many; else 0.
    """

    most: int
    left: int
    full: float
    wait: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """As OpenAI's service has them."""
        return {
            "x-ratelimit-limit-requests": str(self.most),
            "x-ratelimit-remaining-requests": str(self.left),
            "x-ratelimit-reset-requests": f"{self.full:.3f}s",
        }


class Rates:
    """Requests that each tenant has left of `most` a minute.

    A sliding window of two counters a tenant: unlike one of fixed minutes it lets no double burst
    pass where two meet, unlike a list of all requests it costs the same at any rate, and it goes by
    Valkey's clock, so that hosts may disagree about the time.

    While Valkey does not answer, every request passes. Those that find it out wait 250 ms; from
    then on one request in 5 seconds asks again.
    """

    def __init__(
        self, most: int, url: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`most`: 0 for any number. `url`: of Valkey, else that of the settings.

        Raises UsageError for one that is none, and UnavailableError where none is known.
        """
        self._most, self._clock = most, clock
        self._locked, self._ask_at, self._away = threading.Lock(), -math.inf, False
        if not most:
            return
        try:
            self._storage = RedisStorage(
                url or redis_url(),
                key_prefix="membank:rate",
                socket_connect_timeout=_PATIENCE,
                socket_timeout=_PATIENCE,
                retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # handed on to the client
            )
        except ValueError as error:
            raise UsageError(f"MEMBANK_REDIS_URL is not an address of Redis: {error}") from None
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._item = RateLimitItemPerMinute(most)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "rates")

    def take(self, tenant: str) -> Rate | None:
        """The rate after one more request. None: nobody counts, or Valkey is away."""
        if not self._most or not self._may_ask():
            return None
        try:
            # In a thread of its own, as no timeout of the client's bounds the look-up of a name.
            rate = self._pool.submit(self._counted, tenant).result(_PATIENCE)
        except (RedisError, OSError) as error:  # OSError: TimeoutError too
            self._tell(away=True, reason=str(error) or type(error).__name__)
            return None
        self._tell(away=False)
        return rate

    def _counted(self, tenant: str) -> Rate:
        taken = self._limiter.hit(self._item, tenant)
        before, before_ends, now, now_ends = self._storage.get_sliding_window(
            self._item.key_for(tenant), int(_MINUTE)
        )
        left = max(self._most - math.floor(before * before_ends / _MINUTE) - now, 0)
        full = now_ends if now else before_ends
        if taken:
            return Rate(self._most, left, full)
        # The former minute counts less and less; this one, if it is used up, from its end on.
        if now < self._most and before:
            wait = before_ends - (self._most - now) * _MINUTE / before
        else:
            wait = now_ends - _MINUTE
        return Rate(self._most, left, full, max(wait, 0.001))

    def _may_ask(self) -> bool:
        """Whether Valkey is to be asked; while it is away, once each `_PAUSE`."""
        if not self._away:
            return True
        with self._locked:
            if self._clock() < self._ask_at:
                return False
            self._ask_at = self._clock() + _PAUSE
            return True

    def _tell(self, away: bool, reason: str = "") -> None:
        with self._locked:
            if away:
                self._ask_at = self._clock() + _PAUSE
            changed, self._away = away is not self._away, away
        if changed:
            log = structlog.get_logger("api")
            if away:
                log.warning("rates are not counted: Valkey does not answer", reason=reason)
            else:
                log.info("rates are counted again")
