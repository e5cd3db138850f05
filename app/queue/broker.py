"""Whether Valkey answers. What it carries is only wake-ups; the work itself is in Postgres."""

from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.db.addresses import redis_url
from app.errors import UnavailableError, UsageError


def require_broker() -> None:
    """Raises UnavailableError that names the address when Valkey or Redis does not answer."""
    url = redis_url()
    try:
        client = redis.Redis.from_url(
            url, socket_connect_timeout=3, socket_timeout=3, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise UsageError(f"MEMBANK_REDIS_URL is not an address of Redis: {error}") from None
    with client:
        try:
            client.ping()
        except (redis.RedisError, OSError) as error:
            raise UnavailableError(
                f"Valkey at {_place(url)} does not answer ({error}): start it (membank up) or"
                " correct MEMBANK_REDIS_URL"
            ) from None


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
