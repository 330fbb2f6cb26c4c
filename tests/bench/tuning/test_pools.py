"""Pools of training configurations: begin with the defaults, spread over the ranges, the same on every release, without broken members."""

import hashlib
import itertools
import math
from typing import Any

import pytest

import methods
from bench.planning.cells import hyperparameters_of
from bench.tuning import pools
from methods import Float, Int, Range


def drawn(name: str, count: int, fixed: dict[str, Any] | None = None, seed: int = 7) -> list[dict[str, Any]]:
    return list(itertools.islice(pools.drawn(methods.make("trainings", name, fixed or {}), fixed or {}, seed), count))


def test_draws_begin_with_the_defaults_and_stay_in_the_searched_ranges() -> None:
    spam = methods.make("trainings", "spam", {"prior": "layer"})
    first = drawn("spam", 40, {"prior": "layer"})
    assert first[0] == hyperparameters_of(spam)
    assert first == drawn("spam", 40, {"prior": "layer"})
    assert first[1:] != drawn("spam", 40, {"prior": "layer"}, seed=8)[1:]
    for hyperparameters in first:
        assert methods.make("trainings", "spam", hyperparameters)
        assert (hyperparameters["prior"], hyperparameters["structure"]) == ("layer", "diagonal"), "other methods are not found by a search"
        assert 0.03 <= hyperparameters["lr"] <= 0.3
    rates = sorted(h["weight_decay"] for h in first[1:])
    assert rates[0] < 5e-5 < 1e-2 < rates[-1] <= 2e-2, "spread over the decades, up to 1e-2 at least"


def test_draws_follow_from_names_and_numbers_alone() -> None:
    """The sequence of the docstring for `map`, computed here from SHA-256 and the root of x^3 = x + 1."""
    low, high = 1.0, 2.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**3 < middle + 1 else (low, middle)
    for k, found in enumerate(drawn("map", 6, seed=1000)[1:], 1):
        u = {}
        for j, name in enumerate(("lr", "weight_decay"), 1):
            shift = int.from_bytes(hashlib.sha256(f"1000/pool/map/{name}".encode()).digest()[:8], "big") / 2**64
            u[name] = (shift + k * low**-j) % 1
        assert found["lr"] == pytest.approx(0.03 * 10 ** u["lr"], rel=1e-9)
        assert found["weight_decay"] == pytest.approx(1e-5 * 2000 ** u["weight_decay"], rel=1e-9)


def test_points_are_spread_evenly() -> None:
    """Any eight draws in a row leave none of four equal parts of a range empty."""
    logs = [math.log(h["lr"] / 0.03) / math.log(10) for h in drawn("map", 41)[1:]]
    for k in range(len(logs) - 8):
        assert {int(4 * u) for u in logs[k : k + 8]} == {0, 1, 2, 3}


def test_nothing_to_choose_is_one_configuration() -> None:
    fixed = hyperparameters_of(methods.make("trainings", "map", {}))
    assert drawn("map", 5, fixed) == [fixed]


def test_members_that_have_broken_down_are_replaced() -> None:
    draws = [{"lr": float(k)} for k in range(20)]
    accuracy = {0: 0.95, 1: 0.1, 2: 0.86, 3: 0.85, 4: -1.0, 5: 0.99}
    chosen = pools.choose(iter(draws), 4, lambda h: accuracy.get(int(h["lr"])))
    assert [k for k, _ in chosen] == [0, 2, 5, 6], "below nine tenths of the defaults', or failed; the seventh is not trained yet"
    assert pools.choose(iter(draws), 2, lambda h: None) == [(0, {"lr": 0.0}), (1, {"lr": 1.0})]
    hopeless = pools.choose(iter(draws), 3, lambda h: 0.9 if h["lr"] == 0 else 0.1)
    assert [k for k, _ in hopeless] == [0], "after four draws for each place there are no more"


def test_defaults_stay_even_where_they_fail() -> None:
    chosen = pools.choose(iter([{"lr": float(k)} for k in range(9)]), 2, lambda h: -1.0 if h["lr"] == 0 else 0.5)
    assert [k for k, _ in chosen] == [0, 1]


@pytest.mark.parametrize("allowed", [Range(0.5, 2.0), Range(1e-4, 1.0, log=True), Range(1, 5, integer=True), Range(1, 64, True, True)])
def test_a_range_is_covered_from_end_to_end(allowed: Range) -> None:
    values = [allowed.at(u / 1000) for u in range(1000)]
    assert values == sorted(values)
    assert all(v in allowed for v in values)
    assert values[0] == allowed.low
    assert values[-1] == pytest.approx(allowed.high, rel=0.02)
    if allowed.integer and not allowed.log:
        assert {v: values.count(v) for v in values} == dict.fromkeys(range(1, 6), 200)


def test_choices_are_equally_likely() -> None:
    allowed = Range(choices=("a", "b"))
    assert [allowed.at(u) for u in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("kind", ["trainings", "criteria"])
def test_defaults_lie_in_what_is_searched(kind: str) -> None:
    for name in methods.names(kind):
        made = methods.make(kind, name, {})
        for field, allowed in pools.tunable(type(made), {}).items():
            assert getattr(made, field) in allowed, (name, field)


def test_ranges_that_name_other_methods_are_not_searched() -> None:
    class Made(methods.Criterion):
        a: float = Float(1.0, 0.0, 2.0)
        b: int = Int(1, 1, 3)
        c: str = methods.Choice("x", "x", "y", tuned=False)

    import dataclasses

    made = dataclasses.dataclass(frozen=True, kw_only=True)(Made)
    assert list(pools.tunable(made, {"b": 2})) == ["a"]
