"""What accuracy costs: every method and sparsity with its size, FLOPs and latency, the Pareto front, and the best under a budget."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.ranking import statistics, tracks
from bench.ranking.tracks import BLOCK
from bench.spec.row import DENSE, Row

GROUP = ["track", "tuning", *BLOCK]
# Share of the dense network's -> the columns of a row that give it.
COSTS = {
    "parameters": ("parameters_kept", "parameters"),
    "flops": ("flops_kept", "flops"),
    "latency": ("latency_ms", "dense_latency_ms"),
}
DROP = "drop"  # accuracy of the dense network - accuracy, as a budget
COLUMNS = (*GROUP, "method", "sparsity", "seeds", "failed", "accuracy", "accuracy_std", "drop", *COSTS, "front")


def tradeoff(rows: Iterable[Row]) -> pd.DataFrame:
    """What each method and sparsity costs and keeps, for each track, data set and architecture.

    - `accuracy`, `accuracy_std`: mean and standard deviation over seeds; failed rows count as accuracy 0.
    - `drop`: accuracy of the dense network with the same fine-tuning - `accuracy`.
    - `parameters`, `flops`, `latency`: what is left, as a fraction of the dense network's, mean over seeds; missing if not measured.
    - `front`: the costs for which the line is on the Pareto front of its group: no other line has at least this accuracy at no higher
      cost and is better in one of the two.

    Args:
        rows: all results, those of the dense networks included.

    Returns:
        A table with the columns `COLUMNS`; the dense network has the sparsity 0. Unsupported rows and ablations are left out.
    """
    table = tracks.frame(rows)
    pruned = table[(table["track"] != "") & (table["ablation"] == "none") & (table["status"] != "unsupported")]
    groups = [_group(key, part, table) for key, part in pruned.groupby(GROUP, sort=False)]
    return pd.concat(groups, ignore_index=True)[list(COLUMNS)] if groups else pd.DataFrame(columns=list(COLUMNS))


def _group(key: tuple[Any, ...], part: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    dense = tracks.dense_rows(table, part)
    dense = dense[(dense["dataset"] == key[2]) & (dense["architecture"] == key[3])]
    whole = dense["accuracy"].astype(float).mean() if len(dense) else part["dense_accuracy"].astype(float).mean()
    lines = [_line(str(method), float(s), own) for (method, s), own in part.groupby(["method", "sparsity"], sort=False)]
    if len(dense):
        measured = [cost for cost in COSTS if not all(np.isnan(line[cost]) for line in lines)]
        lines.insert(0, _line(DENSE, 0.0, dense) | dict.fromkeys(COSTS, np.nan) | dict.fromkeys(measured, 1.0))
    made = pd.DataFrame(lines).assign(**dict(zip(GROUP, key, strict=True)))
    made["drop"] = whole - made["accuracy"]
    made["front"] = [",".join(cost for cost in COSTS if on_front(made["accuracy"], made[cost], k)) for k in range(len(made))]
    return made


def _line(method: str, sparsity: float, rows: pd.DataFrame) -> dict[str, Any]:
    accuracy = tracks.accuracy(rows)
    shares = {cost: (rows[left].astype(float) / rows[whole].astype(float)).mean() for cost, (left, whole) in COSTS.items()}
    return {
        "method": method, "sparsity": sparsity, "seeds": rows["seed"].nunique(), "failed": int((rows["status"] == "failed").sum()),
        "accuracy": accuracy.mean(), "accuracy_std": accuracy.std(), **shares,
    }  # fmt: skip


def on_front(accuracy: "pd.Series[float]", cost: "pd.Series[float]", k: int) -> bool:
    """Whether no other point has at least the accuracy of point k at no higher cost and is better in one of the two."""
    a, c = accuracy.to_numpy(float), cost.to_numpy(float)
    if np.isnan(a[k]) or np.isnan(c[k]):
        return False
    as_good = (a >= a[k] - statistics.EXACT) & (c <= c[k] + statistics.EXACT)
    better = (a > a[k] + statistics.EXACT) | (c < c[k] - statistics.EXACT)
    return not bool((as_good & better).any())


@dataclass(frozen=True)
class Choice:
    """The best line of one group under a budget.

    Attributes:
        group: track, tuning, data set and architecture.
        best: the line of the table; None if nothing meets the budget.
        rivals: methods with a line under the budget whose accuracy is not significantly different from the best one's (paired t-tests
            over seeds, Holm-corrected).
        tested: whether there are enough seeds to test.
    """

    group: tuple[str, ...]
    best: "pd.Series[Any] | None"
    rivals: tuple[str, ...] = ()
    tested: bool = False


def choose(rows: Iterable[Row], budget: Mapping[str, float], by: str = "") -> Iterator[Choice]:
    """The best method and sparsity under a budget, for each track, data set and architecture.

    Args:
        rows: all results, those of the dense networks included.
        budget: the largest allowed `parameters`, `flops` and `latency`, as fractions of the dense network's, and `drop`, the largest
            allowed loss of accuracy, a fraction.
        by: a cost to minimise instead of maximising accuracy; "" for accuracy.

    Yields:
        One choice per group. Ties go to the lower cost, then to the method that comes first.
    """
    made = list(rows)
    every, table = tradeoff(made), tracks.frame(made)
    for key, lines in every.groupby(GROUP, sort=False):
        group = tuple(map(str, key))
        allowed = lines[(lines["method"] != DENSE) & (lines["failed"] == 0)]
        for name, most in budget.items():
            allowed = allowed[allowed[name] <= most + statistics.EXACT]
        order = [by, "accuracy"] if by else ["accuracy", *COSTS]
        up = [name != "accuracy" for name in order]
        allowed = allowed.dropna(subset=order[:1]).sort_values(order, ascending=up, kind="stable", key=_rounded)
        if allowed.empty:
            yield Choice(group, None)
            continue
        best = allowed.iloc[0]
        own = table[(table[GROUP] == list(key)).all(axis=1) & (table["ablation"] == "none")]
        yield Choice(group, best, *_rivals(best, allowed, own))


def _rounded(values: "pd.Series[float]") -> "pd.Series[float]":
    return values.round(statistics.DIGITS)


def _rivals(best: "pd.Series[Any]", allowed: pd.DataFrame, rows: pd.DataFrame) -> tuple[tuple[str, ...], bool]:
    """The methods whose best allowed line is not significantly different from the best one, and whether that was tested."""
    curves = tracks.curves(rows)
    others = allowed[allowed["method"] != best["method"]].drop_duplicates("method")
    mine = curves[best["method"]][best["sparsity"]]
    apart = {(str(best["method"]), str(o["method"])): mine - curves[o["method"]][o["sparsity"]] for _, o in others.iterrows()}
    if not apart or min(len(d.dropna()) for d in apart.values()) < 2:
        return (), False
    significant = {name for pair in statistics.compare(apart).significant_pairs for name in pair}  # better, or worse: `by` is a cost
    return tuple(str(name) for name in others["method"] if name not in significant), True
