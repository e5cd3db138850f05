"""The table of refreshes: pairs of questions, and what is made of their answers."""

import json

import pytest

from app.answer.service import Answer
from app.errors import UsageError
from app.process import console
from benchmarks import refresh


def answer(tokens: int, refreshes: int, swaps: int, **times: float) -> Answer:
    none = {"first_token": 0.0, "refresh": 0.0, "refresh_search": 0.0, "refresh_load": 0.0}
    usage = {"completion_tokens": tokens}
    return Answer("", "memory", [], none | times, usage, refreshes, swaps)


def test_pairs_hold_each_question_of_each_tenant_twice_with_its_own_answers() -> None:
    found = refresh.pairs(42)
    assert {pair.tenant for pair in found} == {"northwind", "harbor"}
    first = found[0]
    assert first.question.startswith("How many days of annual leave do I get per year? And for ")
    assert first.right == (["27 days", "27"], ["12 weeks", "12"])
    assert found[-1].right[1] == found[1].right[0]
    assert refresh.pairs(3) == found[:3]


@pytest.mark.parametrize(
    ("n", "ks", "every", "named"),
    [
        (0, [1], [16], "-n is 0"),
        (43, [1], [16], "-n is 43"),
        (1, [0], [16], "-k is 0"),
        (1, [1], [4], "--every is 4"),
        (1, [1], [128], "--every is 128"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    n: int, ks: list[int], every: list[int], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        refresh.run(n, ks, every, 128, False)


def test_a_row_has_the_parts_of_a_refresh_and_its_share_of_the_time() -> None:
    times = {"total": 60.0, "first_token": 10.0, "refresh": 30.0}
    spent = {"refresh_search": 12.0, "refresh_load": 4.0}
    given = [answer(11, 3, 2, **times, **spent), answer(1, 0, 0, total=5.0, first_token=5.0)]
    row = refresh._row(1, 16, [(given[0], 2.0), (given[1], 0.0)])
    assert (row.contained, row.questions, row.tokens) == (2, 4, 12)
    assert (row.refreshes, row.swaps) == (3, 2)
    assert (row.token_ms, row.search_ms, row.load_ms, row.reread_ms) == (2.0, 4.0, 2.0, 7.0)
    assert row.share == 1.5


def test_the_table_and_json_hold_every_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    given = [(answer(1, 0, 0, total=5.0, first_token=5.0), 1.0)]
    rows = [refresh._row(1, every, given) for every in (0, 16)]
    refresh.report(rows, 1, 128)
    shown = capsys.readouterr().out
    assert "never" in shown
    assert "16" in shown
    console.print_json(refresh.summary(rows, 1, 128))
    assert [row["every"] for row in json.loads(capsys.readouterr().out)["rows"]] == [0, 16]
