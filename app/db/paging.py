"""Lists in pages, by the time at which their rows were made, from a row that is known by its id."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, text

from app.errors import UsageError


@dataclass(frozen=True)
class Window:
    """Which part of a list: up to `limit` rows that follow the row `after`, or precede `before`."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None

    @property
    def cursor(self) -> str | None:
        return self.before if self.after is None else self.after


@dataclass(frozen=True)
class Rows:
    """A page of rows, and whether there are more in the direction that was asked for."""

    rows: list[Row[Any]]
    has_more: bool


def page(
    connection: Connection, rows: str, values: Mapping[str, Any], window: Window, where: str = ""
) -> Rows:
    """The rows of a page. `rows`: a SELECT with the columns created_at and id, which is text, in
    words of the program alone; where: which of them are listed, a cursor need not be of them.

    Raises UsageError where the cursor is no row, or there are two.
    """
    if window.after is not None and window.before is not None:
        raise UsageError("give after or before, not both")
    newest_first = (window.order == "desc") != (window.before is not None)
    conditions = [where] if where else []
    given = {**values, "page_rows": window.limit + 1}
    if window.cursor is not None:
        given["page_id"] = window.cursor.replace("\x00", "\ufffd")
        start = connection.execute(
            text(f"SELECT created_at FROM ({rows}) r WHERE r.id = :page_id"),  # noqa: S608 (words of ours)
            given,
        ).scalar()
        if start is None:
            name = "after" if window.after is not None else "before"
            raise UsageError(f"`{name}` is not the id of an item in this list")
        given["page_start"] = start
        sign = "<" if newest_first else ">"
        conditions.append(f"(r.created_at, r.id) {sign} (:page_start, :page_id)")
    direction = "DESC" if newest_first else "ASC"
    query = (
        f"SELECT * FROM ({rows}) r"  # noqa: S608 (words of ours)
        f" {'WHERE ' if conditions else ''}{' AND '.join(conditions)}"
        f" ORDER BY r.created_at {direction}, r.id {direction} LIMIT :page_rows"
    )
    found = list(connection.execute(text(query), given).all())
    shown = found[: window.limit]
    if window.before is not None:
        shown.reverse()
    return Rows(shown, len(found) > window.limit)
