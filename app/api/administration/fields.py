"""What the routes of administration take and give in common."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from app.api.http.fields import Printable

T = TypeVar("T")
Entry = Annotated[Printable, Field(min_length=1, max_length=220)]
"""everyone, principal:NAME or group:NAME."""
DocumentId = Annotated[Printable, Field(min_length=1, max_length=512)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Listed(BaseModel, Generic[T]):
    """The whole list."""

    object: Literal["list"] = "list"
    data: list[T]


class Deleted(BaseModel):
    """What was deleted or revoked."""

    id: str
    deleted: Literal[True] = True


def columns(model: type[BaseModel], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a model has fields for."""
    return {name: row[name] for name in model.model_fields if name in row}
