"""Lists in pages, as OpenAI's clients ask for them."""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from app.db.paging import Window

Id = Annotated[str, Field(max_length=4000)]


class Paging(BaseModel):
    """Which page: up to `limit` items that follow `after`, or precede `before`, ids of items."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Id | None = None
    before: Id | None = None

    def window(self, cut: str = "") -> Window:
        """`cut`: what the ids of the items begin with and the rows' ids do not."""
        return Window(
            self.limit,
            self.order,
            self.after and self.after.removeprefix(cut),
            self.before and self.before.removeprefix(cut),
        )


class Item(BaseModel):
    """An item of a list."""

    id: str


T = TypeVar("T", bound=Item)


class Page(BaseModel, Generic[T]):
    """A page of a list. `last_id` is the cursor for the next page."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False

    @classmethod
    def of(cls, data: list[T], has_more: bool) -> "Page[T]":
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)
