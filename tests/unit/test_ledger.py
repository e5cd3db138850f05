"""Who holds what of a budget: counted exactly, never beyond it, with a share for each tenant."""

from hypothesis import given
from hypothesis import strategies as st

from app.store.ledger import Ledger

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "use", "remove"]),
        st.integers(1, 3),
        st.integers(0, 9),
        st.integers(0, 40),
    ),
    max_size=80,
)


@given(STEPS)
def test_bytes_and_entries_are_those_of_what_is_held_and_within_the_budget(
    steps: list[tuple[str, int, int, int]],
) -> None:
    ledger: Ledger[int] = Ledger(100)
    held: dict[tuple[int, int], int] = {}
    for step, tenant, key, size in steps:
        if step == "add":
            held[tenant, key] = size
            for gone in ledger.add(tenant, key, size):
                del held[gone]
        elif step == "use":
            assert ledger.use(tenant, key) is ((tenant, key) in held)
        else:
            ledger.remove(tenant, key)
            held.pop((tenant, key), None)
        assert ledger.bytes == sum(held.values()) <= 100
        assert ledger.entries == len(held)
        assert {(t, k) for t, keys in ledger.held().items() for k in keys} == set(held)


def test_what_was_used_least_lately_goes_first() -> None:
    ledger: Ledger[str] = Ledger(3)
    for key in "abc":
        ledger.add(1, key, 1)
    assert ledger.add(1, "d", 1) == [(1, "a")]
    assert ledger.add(1, "e", 2) == [(1, "b"), (1, "c")]


def test_what_is_larger_than_the_budget_pushes_nothing_out() -> None:
    ledger: Ledger[str] = Ledger(3)
    ledger.add(1, "a", 3)
    assert ledger.add(1, "b", 4) == [(1, "b")]
    assert ledger.held() == {1: ["a"]}


def test_a_scan_of_one_tenant_leaves_the_others_their_share() -> None:
    ledger: Ledger[int] = Ledger(100)
    for key in range(20):
        ledger.add(1, key, 1)
        ledger.add(2, key, 1)
    for key in range(10_000):
        ledger.add(3, key, 1)
    held = ledger.held()
    assert (len(held[1]), len(held[2]), len(held[3])) == (20, 20, 60)


def test_a_tenant_that_held_all_gives_way_to_a_new_one_until_both_hold_the_same() -> None:
    ledger: Ledger[int] = Ledger(100)
    for tenant in (1, 2):
        for key in range(1000):
            ledger.add(tenant, key, 1)
    assert {tenant: len(keys) for tenant, keys in ledger.held().items()} == {1: 50, 2: 50}


def test_a_scan_within_a_tenant_leaves_what_was_used_again() -> None:
    ledger: Ledger[int] = Ledger(100)
    for key in range(60):
        ledger.add(1, key, 1)
    for key in range(60):
        ledger.use(1, key)
    for key in range(1000, 9000):
        ledger.add(1, key, 1)
    assert len(set(range(60)) & set(ledger.held()[1])) >= 48


def test_what_is_new_has_a_chance_where_all_was_used_again() -> None:
    ledger: Ledger[int] = Ledger(100)
    for key in range(100):
        ledger.add(1, key, 1)
        ledger.use(1, key)
    for key in range(1000, 1010):
        ledger.add(1, key, 1)
    assert set(range(1000, 1010)) <= set(ledger.held()[1])
