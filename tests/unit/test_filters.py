"""What a filter may be, and what is said of one that may not. No database."""

import json
from typing import Any

import pytest

from app.bank.filters import Comparison, Compound, comparisons, of_options, parse, sql
from app.errors import UsageError


def test_options_are_read_as_their_type() -> None:
    found = of_options(["team=hr", "year=2024", "open=true", 'code="12"', "x=a=b"])
    assert isinstance(found, Compound)
    assert [(c.key, c.values[0]) for c in comparisons(found)] == [
        ("team", "hr"),
        ("year", 2024),
        ("open", True),
        ("code", "12"),
        ("x", "a=b"),
    ]
    assert of_options([]) is None
    assert of_options(["team=hr"]) == Comparison("eq", "team", ("hr",))


def test_json_and_pairs_go_together() -> None:
    found = of_options(['{"type": "in", "key": "y", "value": [1, 2]}', "team=hr"])
    assert isinstance(found, Compound)
    assert found.type == "and"
    assert found.filters[0] == Comparison("in", "y", (1, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("team", "write KEY=VALUE"),
        ("=x", "write KEY=VALUE"),
        ("{", "is no JSON"),
        ('{"type": "eq", "key": "a", "value": NaN}', "is no JSON"),
        ('{"type": "eq", "key": "a", "value": 1e400}', "finite"),
        ('{"type": "like", "key": "a", "value": "b"}', "there are eq, ne, in, nin"),
        ('{"key": "a", "value": "b"}', "type None"),
        ('{"type": "eq", "key": "", "value": "b"}', "needs a `key`"),
        ('{"type": "eq", "key": 5, "value": "b"}', "needs a `key`"),
        ('{"type": "eq", "key": "a"}', "text, number or boolean"),
        ('{"type": "eq", "key": "a", "value": {"b": 1}}', "text, number or boolean"),
        ('{"type": "in", "key": "a", "value": "b"}', "needs `value`, a list"),
        ('{"type": "in", "key": "a", "value": []}', "needs `value`, a list"),
        ('{"type": "gt", "key": "a", "value": true}', "numbers and text"),
        ('{"type": "and", "filters": []}', "at least one"),
        ('{"type": "and", "filters": [1]}', "a filter is an object"),
        ('{"type": "eq", "key": "a", "value": 1, "or": 2}', "has no or"),
        ('{"type": "eq", "key": "a\\u0000", "value": 1}', "no metadata can hold"),
        ('{"type": "eq", "key": "a", "value": "\\ud800"}', "no metadata can hold"),
    ],
)
def test_what_cannot_be_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        of_options([text])


def test_size_and_depth_are_bounded() -> None:
    with pytest.raises(UsageError, match="more than 100"):
        parse({"type": "in", "key": "a", "value": list(range(101))})
    deep: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    for _ in range(8):
        deep = {"type": "or", "filters": [deep]}
    with pytest.raises(UsageError, match="deeper"):
        parse(deep)


def test_keys_and_values_are_never_part_of_the_statement() -> None:
    evil = "x') OR true --"
    values: dict[str, object] = {"tenant": 1}
    found = sql(
        parse(
            {
                "type": "or",
                "filters": [{"type": t, "key": evil, "value": evil} for t in ("eq", "gt")],
            }
        ),
        values,
    )
    assert "true" not in found
    assert "x'" not in found
    assert sorted(map(str, values.values())) == sorted(["1", *[evil, json.dumps(evil)] * 2])
