"""Accuracy against cost: shares, Pareto fronts and choices, computed a second time by plain loops."""

import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from bench.ranking.tradeoff import COSTS, choose, on_front, tradeoff
from bench.spec.row import Row
from tests.bench.pages import row

METHODS, SPARSITIES, SEEDS = ("magnitude", "obd", "random"), (0.3, 0.5, 0.7, 0.9), (0, 1, 2)


def made(noise: float = 0.004) -> list[Row]:
    """Two architectures, three methods, four sparsities, three seeds; rows of given weights, without latency on one architecture."""
    draw = random.Random(3)
    rows: list[Row] = []
    for architecture in ("a", "b"):
        common: dict[str, Any] = {
            "dataset": "d", "architecture": architecture, "epochs": 0, "granularity": "channel", "parameters": 1000, "flops": 5000,
            "recalibration": "batchnorm",
        }  # fmt: skip
        for seed in SEEDS:
            dense = replace(row("dense", sparsity=0.0), **common, seed=seed, criterion="", stage="", accuracy=0.9, dense_accuracy=None)
            rows.append(dense)
            for k, method in enumerate(METHODS):
                for s in SPARSITIES:
                    lost = s**4 * (0.1 + 0.2 * k) + draw.gauss(0, noise)
                    times = {"latency_ms": 4 * (1 - s / 2) + draw.random(), "dense_latency_ms": 4.0} if architecture == "a" else {}
                    rows.append(replace(
                        row(method, sparsity=s), **common, seed=seed, accuracy=0.9 - lost, dense_accuracy=0.9,
                        parameters_kept=round(1000 * (1 - s)) + 7 * k, flops_kept=round(5000 * (1 - s) ** (1 + k / 3)), **times,
                    ))  # fmt: skip
    return rows


def by_hand(rows: list[Row], architecture: str) -> dict[tuple[str, float], dict[str, float]]:
    """(method, sparsity) -> mean accuracy and shares."""
    measured = [c for c in COSTS if c != "latency" or architecture == "a"]
    found: dict[tuple[str, float], dict[str, float]] = {("dense", 0.0): {"accuracy": 0.9, **dict.fromkeys(measured, 1.0)}}
    for method in METHODS:
        for s in SPARSITIES:
            own = [r for r in rows if (r.architecture, r.method, r.sparsity) == (architecture, method, s)]
            one = {"accuracy": sum(r.accuracy or 0 for r in own) / len(own)}
            one["parameters"] = sum((r.parameters_kept or 0) / 1000 for r in own) / len(own)
            one["flops"] = sum((r.flops_kept or 0) / 5000 for r in own) / len(own)
            if own[0].latency_ms is not None:
                one["latency"] = sum((r.latency_ms or 0) / 4 for r in own) / len(own)
            found[method, s] = one
    return found


def dominated(points: dict[tuple[str, float], dict[str, float]], key: tuple[str, float], cost: str) -> bool:
    own = points[key]
    for other in points.values():
        if cost not in other:
            continue
        no_worse = other["accuracy"] >= own["accuracy"] and other[cost] <= own[cost]
        if no_worse and (other["accuracy"] > own["accuracy"] or other[cost] < own[cost]):
            return True
    return False


@pytest.mark.parametrize("architecture", ["a", "b"])
def test_shares_and_fronts(architecture: str) -> None:
    rows = made()
    table = tradeoff(rows)
    assert set(table["track"]) == {"one-shot on given weights, channel, batch norm recalibrated"}
    points = by_hand(rows, architecture)
    lines = table[table["architecture"] == architecture]
    assert len(lines) == len(points) == 13
    fronts = 0
    for _, line in lines.iterrows():
        key = (line["method"], line["sparsity"])
        for name in ("accuracy", *COSTS):
            shown = line[name]
            assert (name not in points[key] and math.isnan(shown)) or shown == pytest.approx(points[key][name], abs=1e-12), (key, name)
        assert line["drop"] == pytest.approx(0.9 - points[key]["accuracy"], abs=1e-12)
        wanted = [c for c in COSTS if c in points[key] and not dominated(points, key, c)]
        assert line["front"] == ",".join(wanted), key
        fronts += bool(wanted)
    assert 2 < fronts < 13


def test_the_choice_is_the_most_accurate_under_the_budget() -> None:
    rows = made()
    for budget in ({"flops": 0.4}, {"parameters": 0.55, "latency": 0.95}, {"drop": 0.02}, {}):
        for choice in choose(rows, budget):
            points = by_hand(rows, choice.group[3])
            lost = {k: v | {"drop": 0.9 - v["accuracy"]} for k, v in points.items() if k[0] != "dense"}
            allowed = {k: v for k, v in lost.items() if all(n in v and v[n] <= most for n, most in budget.items())}
            if not allowed:
                assert choice.best is None
                assert "latency" in budget
                continue
            assert choice.best is not None
            assert (choice.best["method"], choice.best["sparsity"]) == max(allowed, key=lambda k: allowed[k]["accuracy"])


def test_the_smallest_within_a_loss() -> None:
    rows = made()
    for choice in choose(rows, {"drop": 0.02}, by="flops"):
        points = {k: v for k, v in by_hand(rows, choice.group[3]).items() if k[0] != "dense" and 0.9 - v["accuracy"] <= 0.02}
        assert choice.best is not None
        assert (choice.best["method"], choice.best["sparsity"]) == min(points, key=lambda k: points[k]["flops"])


def test_rivals_are_those_that_a_paired_test_does_not_tell_apart() -> None:
    rows = made(noise=0.02)
    told = []
    for choice in choose(rows, {"flops": 0.4}):
        best = choice.best
        assert best is not None
        assert choice.tested
        own = {(r.method, r.sparsity, r.seed): r.accuracy or 0 for r in rows if r.architecture == choice.group[3]}
        points = {k: v for k, v in by_hand(rows, choice.group[3]).items() if k[0] != "dense" and v["flops"] <= 0.4}
        p = {}
        for method in {k[0] for k in points} - {best["method"]}:
            s = max((k for k in points if k[0] == method), key=lambda k: points[k]["accuracy"])[1]
            apart = [own[best["method"], best["sparsity"], seed] - own[method, s, seed] for seed in SEEDS]
            t = statistics.mean(apart) / (statistics.stdev(apart) / math.sqrt(len(apart)))
            p[method] = 2 * stats.t.sf(abs(t), len(apart) - 1)
        holm = sorted(p.values())
        corrected = {m: min(1.0, max(v * (len(holm) - k) for k, v in enumerate(holm[: holm.index(own_p) + 1]))) for m, own_p in p.items()}
        assert set(choice.rivals) == {m for m, v in corrected.items() if v >= 0.05}
        told.append(len(choice.rivals))
    assert told


def test_failed_rows_are_not_chosen_and_one_seed_is_not_tested() -> None:
    rows = [r for r in made() if r.seed == 0 and r.architecture == "a"]
    (choice,) = choose(rows, {"flops": 0.4})
    assert choice.best is not None
    assert not choice.tested
    failed = [replace(r, status="failed", accuracy=None) if r.method == choice.best["method"] else r for r in rows]
    (other,) = choose(failed, {"flops": 0.4})
    assert other.best is not None
    assert other.best["method"] != choice.best["method"]
    assert set(tradeoff(failed).query("failed > 0")["method"]) == {choice.best["method"]}


def test_equal_points_are_all_on_the_front() -> None:
    import pandas as pd

    accuracy, cost = pd.Series([0.9, 0.9, 0.8, 0.9]), pd.Series([0.5, 0.5, 0.5, float("nan")])
    assert [on_front(accuracy, cost, k) for k in range(4)] == [True, True, False, False]


def two(good: float, cheap: float, *, kept: int = 100, flops: int = 500) -> list[Row]:
    """`random` is dense in size and has the accuracy `good`; `obd` keeps these parameters and FLOPs at `cheap`. Both differ over seeds."""
    rows = []
    for method, accuracy, parameters, left in (("random", good, 900, 4500), ("obd", cheap, kept, flops)):
        cost = {"parameters": 1000, "parameters_kept": parameters, "flops": 5000, "flops_kept": left}
        rows += [row(method, sparsity=0.5, seed=k, accuracy=accuracy + k / 1000, dense_accuracy=0.9, **cost) for k in range(4)]
    return rows


def test_a_method_that_is_significantly_better_than_the_smallest_is_no_rival() -> None:
    (choice,) = choose(two(0.9, 0.8), {"drop": 0.5}, by="flops")
    assert choice.best is not None
    assert (choice.best["method"], choice.rivals, choice.tested) == ("obd", (), True)
    (choice,) = choose(two(0.9, 0.8), {}, by="")
    assert choice.best is not None
    assert (choice.best["method"], choice.rivals, choice.tested) == ("random", (), True)


def test_rounding_breaks_no_tie() -> None:
    """The sums of 0.1, 0.2 and 0.3 in both orders differ in the last bit: equal accuracies, so the smaller network is chosen."""
    assert (0.1 + 0.2) + 0.3 > 0.1 + (0.2 + 0.3)
    (choice,) = choose(two((0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)), {})
    assert choice.best is not None
    assert choice.best["method"] == "obd"
