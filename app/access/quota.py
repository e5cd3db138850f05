"""Quotas: what a tenant may hold, and ask in a day. Where no limit is set, none is looked for.

Documents and uploaded files are counted by triggers (migrations/schema). Each limit can be
overrun by what is in flight at the moment it is reached, and by no more.
"""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text

from app.access import audit
from app.db.session import Asker
from app.errors import QuotaError

_TODAY = "cast(now() AT TIME ZONE 'UTC' AS date)"
_REACHED = text(
    "SELECT t.name, q.requests AS most_requests, q.tokens AS most_tokens,"  # noqa: S608 (no values)
    " coalesce(u.requests, 0) AS requests, coalesce(u.tokens, 0) AS tokens,"
    " 86400 - extract(epoch FROM cast(now() AT TIME ZONE 'UTC' AS time)) AS seconds_left"
    " FROM tenant_quota q JOIN tenant t ON t.id = q.tenant_id LEFT JOIN tenant_usage u"
    f" ON u.tenant_id = q.tenant_id AND u.day = {_TODAY} WHERE q.tenant_id = :tenant"
)


def count_request(connection: Connection, asker: Asker) -> None:
    """Count a request, in a transaction of the asker's; others of the tenant wait for its end.

    Raises QuotaError when the day's are used up.
    """
    if connection.execute(text("SELECT request_begin()")).scalar():
        return
    row = connection.execute(_REACHED, {"tenant": asker.tenant}).one()
    what = "requests"
    if row.most_requests is None or row.requests < row.most_requests:
        what = "tokens"
    error = QuotaError(
        f"tenant {row.name!r} may use {getattr(row, f'most_{what}')} {what} a day and has used"
        f" {getattr(row, what)}: wait until 0:00 UTC, or raise the limit"
        f" (membank tenant quota {row.name!r} --{what})"
    )
    error.retry_after = float(row.seconds_left)
    raise error


def count_tokens(connection: Connection, tokens: int) -> None:
    """Add what an answer used to the day's tokens of the tenant that asks."""
    connection.execute(text("SELECT request_end(:tokens)"), {"tokens": tokens})


_ROOM = text(
    "SELECT t.name, q.bytes, (SELECT coalesce(sum(coalesce(size, octet_length(payload))), 0)"
    " FROM memory_blob WHERE tenant_id = q.tenant_id) AS held"
    " FROM tenant_quota q JOIN tenant t ON t.id = q.tenant_id"
    " WHERE q.tenant_id = :tenant AND q.bytes IS NOT NULL"
)


@dataclass
class Room:
    """Bytes that a tenant may still store; `left` None: any number."""

    left: int | None
    error: str = ""

    @classmethod
    def of(cls, connection: Connection, tenant: int) -> "Room":
        row = connection.execute(_ROOM, {"tenant": tenant}).one_or_none()
        if row is None:
            return cls(None)
        return cls(
            row.bytes - int(row.held),
            f"QuotaError: tenant {row.name!r} may hold {row.bytes} bytes of memories and holds"
            f" {row.held}: forget documents, or raise the limit (membank tenant quota"
            f" {row.name!r} --bytes), then membank jobs retry",
        )

    def take(self, size: int) -> bool:
        """Whether so many bytes had room; if so, they have taken it."""
        if self.left is None:
            return True
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Quota:
    """Limits of a tenant; None: no limit. bytes: of memories, upload_bytes: of uploaded files;
    requests and tokens are of a day."""

    documents: int | None = None
    bytes: int | None = None
    requests: int | None = None
    tokens: int | None = None
    upload_bytes: int | None = None


def set_quota(connection: Connection, tenant: int, quota: Quota) -> None:
    """Put all limits in place of those that are there; for an administrator to do."""
    connection.execute(
        text(
            "INSERT INTO tenant_quota (tenant_id, documents, bytes, requests, tokens,"
            " upload_bytes) VALUES (:tenant, :documents, :bytes, :requests, :tokens,"
            " :upload_bytes)"
            " ON CONFLICT (tenant_id) DO UPDATE SET documents = excluded.documents,"
            " bytes = excluded.bytes, requests = excluded.requests, tokens = excluded.tokens,"
            " upload_bytes = excluded.upload_bytes"
        ),
        {"tenant": tenant, **asdict(quota)},
    )
    audit.note(connection, tenant, "quota", detail=asdict(quota))


def quota_of(connection: Connection, tenant: int) -> tuple[Quota, Quota]:
    """A tenant's limits, and what it holds and has used today; for an administrator to see."""
    row = connection.execute(
        text(
            "SELECT documents, bytes, requests, tokens, upload_bytes FROM tenant_quota"
            " WHERE tenant_id = :tenant"
        ),
        {"tenant": tenant},
    ).one_or_none()
    used = connection.execute(
        text(
            "SELECT (SELECT count(*) FROM document WHERE tenant_id = :tenant),"  # noqa: S608 (no values)
            " (SELECT coalesce(sum(coalesce(size, octet_length(payload))), 0)::bigint"
            " FROM memory_blob WHERE tenant_id = :tenant), coalesce(max(requests), 0),"
            " coalesce(max(tokens), 0), (SELECT coalesce(sum(bytes), 0)::bigint FROM file"
            " WHERE tenant_id = :tenant)"
            f" FROM tenant_usage WHERE tenant_id = :tenant AND day = {_TODAY}"
        ),
        {"tenant": tenant},
    ).one()
    return (Quota() if row is None else Quota(*row)), Quota(*used)


def usage(connection: Connection, tenant: int, days: int) -> list[dict[str, Any]]:
    """What a tenant has asked on each of the last days, the latest first: day, requests, tokens.

    For an administrator to see.
    """
    rows = connection.execute(
        text(
            "SELECT day, requests, tokens FROM tenant_usage"  # noqa: S608 (no values)
            f" WHERE tenant_id = :tenant AND day > {_TODAY} - cast(:days AS int)"
            " ORDER BY day DESC"
        ),
        {"tenant": tenant, "days": days},
    )
    return [dict(row) for row in rows.mappings()]
