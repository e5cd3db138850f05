"""The OpenAPI description of a condition on documents' metadata."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from app.api.http.fields import Storable

FieldName = Annotated[Storable, Field(min_length=1)]


class _Condition(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Equality(_Condition):
    """Documents whose field has the value (eq), or has not (ne)."""

    type: Literal["eq", "ne"]
    key: FieldName
    value: str | float | bool


class Order(_Condition):
    """Documents whose field is greater or less than the value."""

    type: Literal["gt", "gte", "lt", "lte"]
    key: FieldName
    value: str | float


class Membership(_Condition):
    """Documents whose field has one of the values, or none of them."""

    type: Literal["in", "nin"]
    key: FieldName
    value: Annotated[list[str | float | bool], Field(min_length=1, max_length=100)]


class Compound(_Condition):
    """Documents that fit all of the conditions, or any of them."""

    type: Literal["and", "or"]
    filters: Annotated[list["Equality | Order | Membership | Compound"], Field(min_length=1)]


class _DescribedAsCondition:
    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(Equality | Order | Membership | Compound).core_schema)


Filters = Annotated[dict[str, Any], _DescribedAsCondition()]
"""A condition for app.bank.filters.parse, whose errors say more than a validation of this type."""
