"""Rows to tables: one ranking per track, never mixed.

A track is what may be compared (protocol, rule 6): one-shot after training, while training, at initialisation, and fine-tuned.
Within a track the response of a method in a block (data set, architecture) and seed is the area under its accuracy-sparsity curve.
Results at declared defaults and tuned results are two tables (rule 4), and so two families of tests.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench import statistics
from bench.spec import COLUMNS as ROW_COLUMNS
from bench.spec import DENSE, Row

BASELINE = "magnitude"
ONE_SHOT = {"after": "one-shot after training", "during": "one-shot while training", "init": "one-shot at initialisation"}
AT = (0.9, 0.95, 0.99)  # sparsities with a column of accuracy
CALIBRATION_AT = 0.95
MARGIN = 0.01  # "within one point of dense"
COLUMNS = (
    "track", "tuning", "rank", "method", "relative_area", "relative_area_low", "relative_area_high", "relative_area_std",
    "sparsity_within_one_point", "accuracy_90", "accuracy_95", "accuracy_99", "nll_95", "ece_95", "scoring_epochs",
    "wins", "ties", "losses", "blocks", "seeds", "rows", "failed", "collapsed", "unsupported", "epochs",
)  # fmt: skip
BLOCK = ["dataset", "architecture"]


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table, with the track of each: '' for the dense references; ablations under a name of their own."""
    table = pd.DataFrame([[getattr(row, name) for name in ROW_COLUMNS] for row in rows], columns=list(ROW_COLUMNS))
    ablated = table["ablation"] != "none"
    table.loc[ablated, "method"] += " (" + table["ablation"] + ")"
    kinds = zip(table["stage"], table["finetune_epochs"], table["granularity"], table["match"], strict=True)
    table["track"] = [track(*kind) for kind in kinds]
    return table


def track(stage: str, finetune_epochs: int, granularity: str = "weight", match: str = "weights") -> str:
    """The track of a row: what is not compared has another one. '' for a dense reference, which has no stage."""
    if not stage:
        return ""
    name = f"fine-tuned {finetune_epochs} epochs" if finetune_epochs else ONE_SHOT[stage]
    if granularity != "weight":
        name += f", {granularity}"
    return name if match == "weights" else f"{name}, equal {match}"


def leaderboard(rows: Iterable[Row]) -> pd.DataFrame:
    """The leaderboard of all tracks: one line a method, track and tuning, by rank and falling area, with the columns `COLUMNS`.

    Areas and accuracies are means over seeds, then over blocks. A failed row counts as accuracy 0. `relative_area` is the area over
    the block's mean dense accuracy; `relative_area_low` and `relative_area_high` are its 95 % interval over new seeds, the dense
    accuracy being taken as known, and `relative_area_std` its sample standard deviation over seeds, pooled within blocks
    (`bench.statistics.estimate`); these are missing where there is one seed. Missing sparsities leave their columns empty.

    `rank` is 1 + the number of ranked methods that are told apart from this one as better (see `_ranks`), so equal methods share it.
    Shown without a rank: an unsupported method, one that trains for more epochs than the dense networks do, and ablations.
    """
    table = frame(rows)
    tracks = table[table["track"] != ""].groupby(["track", "tuning"], sort=False)
    boards = [_board(name, tuning, part, table) for (name, tuning), part in tracks]
    if not boards:
        return pd.DataFrame(columns=list(COLUMNS))
    order = {name: place for place, name in enumerate(ONE_SHOT.values())}
    boards.sort(key=lambda b: (order.get(b["track"].iloc[0].partition(",")[0], len(order)), b["track"].iloc[0], b["tuning"].iloc[0]))
    return pd.concat(boards, ignore_index=True)


def _board(name: str, tuning: str, part: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    reference = _reference(table, int(part["finetune_epochs"].iloc[0]))
    measured = curves(part)
    lines = [_line(method, rows, reference, measured) for method, rows in part.groupby("method", sort=False)]
    board = pd.DataFrame(lines).sort_values("area", ascending=False, na_position="last", kind="stable")
    unranked = part.loc[(part["ablation"] != "none") | _over_budget(part, table), "method"]
    ranks = _ranks(board[board["area"].notna() & ~board["method"].isin(unranked)], measured)
    board["rank"] = board["method"].map(ranks).astype("Int64")
    board = board.sort_values("rank", kind="stable", na_position="last")
    board["track"], board["tuning"] = name, tuning
    return board.reindex(columns=list(COLUMNS))


def _ranks(board: pd.DataFrame, measured: dict[str, pd.DataFrame]) -> dict[str, int]:
    """The rank of each line: 1 + the number of methods that are better, so that those that cannot be told apart share it.

    Better is: a larger area, told apart by the paired test after Holm's correction over all pairs of the board. What did not fail
    is also better than a method with failed rows and a smaller area: a failure is a result, not noise, and the spread that it
    brings must not earn a place among the best. So a method that failed everywhere is last.
    """
    pairs = itertools.combinations(board["method"], 2)
    better = statistics.told_apart({(a, b): difference(measured[a], measured[b]) for a, b in pairs})
    for worse in board[board["failed"] > 0].itertuples():
        better |= {(name, worse.method) for name in board.loc[board["area"] > worse.area, "method"]}
    return statistics.shared_ranks(board["method"], better)


def _over_budget(part: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Which rows took more epochs than the dense networks of their block (protocol, rule 4)."""
    budget = table[table["track"] == ""].groupby(BLOCK)["epochs"].min()
    own = pd.MultiIndex.from_frame(part[BLOCK])
    return pd.Series(part["epochs"].to_numpy() > budget.reindex(own).fillna(np.inf).to_numpy(), index=part.index)


def _reference(table: pd.DataFrame, finetune_epochs: int) -> pd.Series:
    """Mean dense accuracy of each block at this budget: ordinary training's where it was run, else each method's own is used.

    At its defaults, for tuned methods too: so the default and the tuned table compare.
    """
    dense = table[(table["method"] == DENSE) & (table["finetune_epochs"] == finetune_epochs)]
    plain = dense[dense["tuning"] == "default"]
    dense = dense if plain.empty else plain
    return dense.groupby(BLOCK)["accuracy"].mean()


def _accuracy(rows: pd.DataFrame) -> pd.Series:
    """Accuracy, with 0 where a row failed: a failure is the worst result, it does not vanish."""
    return rows["accuracy"].astype(float).where(rows["status"] != "failed", 0.0)


def area(sparsity: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean height of the piecewise linear accuracy-sparsity curve over its range: the accuracy itself where there is one point."""
    order = np.argsort(sparsity)
    x, y = np.asarray(sparsity, float)[order], np.asarray(accuracy, float)[order]
    return float(y[0]) if len(x) == 1 else float(np.trapezoid(y, x) / (x[-1] - x[0]))


def curves(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> accuracy by (data set, architecture, seed) and sparsity, of the rows that are supported."""
    ran = part[part["status"] != "unsupported"].assign(value=_accuracy)
    return {
        str(method): rows.pivot_table(index=[*BLOCK, "seed"], columns="sparsity", values="value", sort=False)
        for method, rows in ran.groupby("method", sort=False)
    }


def areas(curve: pd.DataFrame) -> pd.Series:
    """Area by (data set, architecture, seed), over the sparsities that each line has; lines without any are left out."""
    x, y = curve.columns.to_numpy(float), curve.to_numpy(float)
    has = ~np.isnan(y)
    values = [area(x[h].tolist(), line[h].tolist()) if h.any() else np.nan for line, h in zip(y, has, strict=True)]
    return pd.Series(values, index=curve.index, dtype=float).dropna()


def difference(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Area of a less area of b, paired by data set, architecture and seed, over the sparsities that both have there."""
    return areas(a - b)


def _line(method: str, rows: pd.DataFrame, reference: pd.Series, measured: dict[str, pd.DataFrame]) -> dict[str, Any]:
    ran = rows[rows["status"] != "unsupported"].assign(value=_accuracy)
    line: dict[str, Any] = {
        "method": method,
        "blocks": ran.groupby(BLOCK).ngroups,
        "seeds": ran["seed"].nunique(),
        "rows": len(rows),
        "epochs": float((rows["epochs"] + rows["finetune_epochs"]).mean()),
        **{status: int((rows["status"] == status).sum()) for status in ("failed", "collapsed", "unsupported")},
    }
    if ran.empty:
        return line | {"area": np.nan}
    own = ran.groupby(BLOCK)["dense_accuracy"].mean()
    dense = own.mul(0).add(reference, fill_value=np.nan).fillna(own) if len(reference) else own
    mine = areas(measured[method])
    relative = statistics.estimate(mine / dense.reindex(mine.index.droplevel("seed")).to_numpy(float))
    return line | {
        "area": mine.groupby(level=BLOCK).mean().mean(),
        "relative_area": relative.mean,
        "relative_area_low": relative.low,
        "relative_area_high": relative.high,
        "relative_area_std": relative.std,
        "sparsity_within_one_point": _largest_sparsity(ran, dense),
        **{f"accuracy_{round(s * 100)}": _mean_at(ran, "value", s) for s in AT},
        "nll_95": _mean_at(ran, "nll", CALIBRATION_AT),
        "ece_95": _mean_at(ran, "ece", CALIBRATION_AT),
        "scoring_epochs": _scoring_epochs(ran),
        **_versus_baseline(measured[method], measured),
    }


def _mean_at(ran: pd.DataFrame, column: str, sparsity: float) -> float:
    """Mean of a column at one sparsity, over seeds and then over blocks."""
    rows = ran[np.isclose(ran["sparsity"], sparsity)]
    return float(rows.groupby(BLOCK)[column].mean().mean())


def _largest_sparsity(ran: pd.DataFrame, dense: pd.Series) -> float:
    """Mean over blocks of the largest sparsity whose interpolated mean accuracy stays within one point of dense.

    The curve starts at (0, dense accuracy) and is left where it first falls below.
    """
    reached = []
    for block, rows in ran.groupby(BLOCK):
        curve = rows.groupby("sparsity")["value"].mean()
        floor = dense[block] - MARGIN
        x, y = [0.0, *curve.index], [dense[block], *curve.to_numpy()]
        last = x[-1]
        for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
            if y1 < floor:
                last = x0 + (x1 - x0) * (y0 - floor) / (y0 - y1)
                break
        reached.append(last)
    return float(np.mean(reached))


def _scoring_epochs(ran: pd.DataFrame) -> float:
    """Median cost of scoring in epochs of training, the training being the row's own."""
    seconds = ran["train_seconds"] / (ran["epochs"] + ran["finetune_epochs"])
    return float((ran["score_seconds"].astype(float) / seconds.astype(float)).median())


def _versus_baseline(mine: pd.DataFrame, measured: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Blocks and seeds in which the area is larger than magnitude's, equal to it, smaller."""
    if BASELINE not in measured:
        return {}
    signs = np.sign(difference(mine, measured[BASELINE]).round(12))
    return {"wins": int((signs > 0).sum()), "ties": int((signs == 0).sum()), "losses": int((signs < 0).sum())}
