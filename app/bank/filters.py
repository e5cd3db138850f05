"""Conditions on the metadata of documents: read from JSON, given to the database as values.

A condition is written as OpenAI's vector stores take it:

    {"type": "eq", "key": "team", "value": "hr"}          also ne, gt, gte, lt, lte
    {"type": "in", "key": "year", "value": [2023, 2024]}  also nin
    {"type": "and", "filters": [...]}                     also or

A value is text, a number, true or false, and is compared with what has the same type. A document
whose key holds a list fits `eq` and `in` where the list holds the value. `ne` and `nin` are what
`eq` and `in` are not: they fit a document without the key too.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import FilterError

_ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_SETS, _NEGATED = ("in", "nin"), ("ne", "nin")
_DEEPEST, _MOST = 8, 100

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Comparison:
    """One key with a value, or with several where the type is `in` or `nin`."""

    type: str
    key: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Compound:
    """All of the conditions (`and`), or any of them (`or`)."""

    type: str
    filters: tuple["Filter", ...]


Filter = Comparison | Compound


def parse(value: object) -> Filter:
    """The condition that a JSON value writes. Raises FilterError that says what is wrong."""
    found = _parsed(value, 1)
    if sum(len(each.values) for each in comparisons(found)) > _MOST:
        raise FilterError(f"the filter compares with more than {_MOST} values: take fewer")
    return found


def of_options(texts: Sequence[str]) -> Filter | None:
    """What `--filter` gives: KEY=VALUE or a condition as JSON, all of them together.

    VALUE is a number, true, false or text; quoted ("2024") it is text whatever it looks like.
    """
    found: list[object] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if text.lstrip().startswith("{"):
            found.append(_json(text, f"--filter {text}"))
        elif equals and key.strip():
            found.append({"type": "eq", "key": key.strip(), "value": _scalar(value.strip())})
        else:
            raise FilterError(f"--filter is {text!r}: write KEY=VALUE, or a condition as JSON")
    if len(found) < 2:
        return parse(found[0]) if found else None
    return parse({"type": "and", "filters": found})


def comparisons(condition: Filter) -> Iterator[Comparison]:
    """Every comparison in a condition."""
    if isinstance(condition, Comparison):
        yield condition
    else:
        for each in condition.filters:
            yield from comparisons(each)


def sql(condition: Filter, values: dict[str, Any]) -> str:
    """The condition over `d.metadata`, its keys and values as parameters added to `values`.

    It is true, false or null for a document. The text consists of words of this module alone.
    """
    if isinstance(condition, Compound):
        return "(" + f" {condition.type} ".join(sql(f, values) for f in condition.filters) + ")"
    key = _bound(condition.key, values)
    field = f"(d.metadata -> cast(:{key} AS text))"
    operands = [f"cast(:{_bound(json.dumps(v), values)} AS jsonb)" for v in condition.values]
    if condition.type in _ORDER:
        [operand] = operands
        same = f"jsonb_typeof({field}) = jsonb_typeof({operand})"
        return f"({same} AND {field} {_ORDER[condition.type]} {operand})"
    held = "(" + " OR ".join(f"{field} @> {operand}" for operand in operands) + ")"
    return f"(NOT coalesce({held}, false))" if condition.type in _NEGATED else held


def _bound(value: str, values: dict[str, Any]) -> str:
    name = f"filter_{len(values)}"
    values[name] = value
    return name


def _parsed(value: object, depth: int) -> Filter:
    if depth > _DEEPEST:
        raise FilterError(f"the filter is nested deeper than {_DEEPEST}: write it flatter")
    if not isinstance(value, dict):
        raise FilterError(f'a filter is an object such as {{"type": "eq", ...}}, not {value!r}')
    kind = value.get("type")
    if kind in ("and", "or"):
        some = value.get("filters")
        _only(value, {"type", "filters"})
        if not isinstance(some, list) or not some:
            raise FilterError(f"the filter {kind!r} needs `filters`, a list of at least one")
        return Compound(kind, tuple(_parsed(each, depth + 1) for each in some))
    if not isinstance(kind, str) or kind not in ("eq", "ne", *_SETS, *_ORDER):
        raise FilterError(
            f"a filter has the type {kind!r}: there are eq, ne, in, nin, gt, gte, lt, lte, and, or"
        )
    _only(value, {"type", "key", "value"})
    key, given = value.get("key"), value.get("value")
    if not isinstance(key, str) or not key:
        raise FilterError(f"the filter {kind!r} needs a `key`, the name of a metadata field")
    _require_text(key)
    operands = given if kind in _SETS else [given]
    if not isinstance(operands, list) or not operands:
        raise FilterError(f"the filter on {key!r}: `{kind}` needs `value`, a list of at least one")
    return Comparison(kind, key, tuple(_operand(kind, key, each) for each in operands))


def _operand(kind: str, key: str, value: object) -> Scalar:
    if not isinstance(value, str | int | float | bool):
        raise FilterError(f"the filter on {key!r} has the value {value!r}: text, number or boolean")
    if isinstance(value, bool) and kind in _ORDER:
        raise FilterError(f"the filter on {key!r}: {kind} is for numbers and text")
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"the filter on {key!r} has the value {value}: give a finite number")
    if isinstance(value, str):
        _require_text(value)
    return value


def _require_text(value: str) -> None:
    """Raises FilterError for characters that the database cannot keep."""
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise FilterError(f"the filter has {value!r}, which no metadata can hold: correct it")


def _only(value: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(value) - known):
        raise FilterError(f"a filter of type {value['type']!r} has no {', '.join(unknown)}")


def _json(text: str, where: str) -> object:
    def refused(constant: str) -> object:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise FilterError(f"{where} is no JSON: {error}") from None


def _scalar(text: str) -> object:
    """A JSON number, boolean or quoted text; anything else is the text itself."""
    try:
        value = _json(text, "")
    except FilterError:
        return text
    return value if isinstance(value, str | int | float | bool) else text
