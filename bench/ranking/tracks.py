"""Tracks: the rows that may be compared, and their accuracy-sparsity curves relative to the dense network.

A track is what may be compared (protocol, rule 6): one-shot after training, while training, at initialisation, and fine-tuned.
Results at declared defaults and tuned results are two tables (rule 4), and so two tracks here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.spec.row import COLUMNS, DENSE, Row

ONE_SHOT = {"after": "one-shot after training", "during": "one-shot while training", "init": "one-shot at initialisation"}
BLOCK = ["dataset", "architecture"]


@dataclass(frozen=True)
class Track:
    """The rows of one board. Of each method that ran: `dense`, what counts as 1 in each block, and `curves`, accuracies over that.

    `unranked`: methods that trained for more epochs than the dense networks did, and ablations. `curves` are as `curves` has them.
    """

    name: str
    tuning: str
    rows: pd.DataFrame
    unranked: frozenset[str]
    dense: dict[str, pd.Series]
    curves: dict[str, pd.DataFrame]


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table, with the track of each: '' for the dense references; ablations under a name of their own."""
    table = pd.DataFrame([[getattr(row, name) for name in COLUMNS] for row in rows], columns=list(COLUMNS))
    ablated = table["ablation"] != "none"
    table.loc[ablated, "method"] += " (" + table["ablation"] + ")"
    kinds = zip(table["stage"], table["finetune_epochs"], table["granularity"], table["match"], strict=True)
    table["track"] = [track_name(*kind) for kind in kinds]
    return table


def track_name(stage: str, finetune_epochs: int, granularity: str = "weight", match: str = "weights") -> str:
    """The track of a row: what is not compared has another one. '' for a dense reference, which has no stage."""
    if not stage:
        return ""
    name = f"fine-tuned {finetune_epochs} epochs" if finetune_epochs else ONE_SHOT[stage]
    if granularity != "weight":
        name += f", {granularity}"
    return name if match == "weights" else f"{name}, equal {match}"


def split(table: pd.DataFrame) -> list[Track]:
    """The tracks of rows as `frame` has them, one-shot ones first; dense references are in none.

    Raises ValueError where a method has rows in a block and there is no dense accuracy to divide them by.
    """
    order = {name: place for place, name in enumerate(ONE_SHOT.values())}
    groups = table[table["track"] != ""].groupby(["track", "tuning"], sort=False)
    found = [_track(str(name), str(tuning), part, table) for (name, tuning), part in groups]
    return sorted(found, key=lambda t: (order.get(t.name.partition(",")[0], len(order)), t.name, t.tuning))


def _track(name: str, tuning: str, part: pd.DataFrame, table: pd.DataFrame) -> Track:
    dense = _denominators(part, _dense_rows(table, int(part["finetune_epochs"].iloc[0])))
    relative = {method: _over(curve, dense[method]) for method, curve in curves(part).items()}
    unranked = part.loc[(part["ablation"] != "none") | _over_budget(part, table), "method"]
    return Track(name, tuning, part, frozenset(unranked), dense, relative)


def _over_budget(part: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Which rows took more epochs than the dense networks of their block (protocol, rule 4)."""
    budget = table[table["track"] == ""].groupby(BLOCK)["epochs"].min()
    own = pd.MultiIndex.from_frame(part[BLOCK])
    return pd.Series(part["epochs"].to_numpy() > budget.reindex(own).fillna(np.inf).to_numpy(), index=part.index)


def warnings(table: pd.DataFrame) -> list[str]:
    """A sentence for each block whose dense network did not train, from rows as `frame` has them."""
    said = []
    for finetuned in sorted(set(table.loc[table["track"] != "", "finetune_epochs"])):
        dense = _dense_rows(table, finetuned)
        for dataset, architecture in _untrained(dense):
            bad = _did_not_train(dense[(dense["dataset"] == dataset) & (dense["architecture"] == architecture)])
            after = f" with {finetuned} epochs of fine-tuning" * bool(finetuned)
            said.append(
                f"{dataset}/{architecture}{after}: the dense network did not train (chance accuracy, or an error) on {bad.sum()} of "
                f"{len(bad)} seeds. This block is left out of areas, ranks and sparsities within one point of dense."
            )
    return said


def _dense_rows(table: pd.DataFrame, finetune_epochs: int) -> pd.DataFrame:
    """The rows of the `dense` networks, trained at the defaults, at this budget."""
    return table[(table["method"] == DENSE) & (table["tuning"] == "default") & (table["finetune_epochs"] == finetune_epochs)]


def _did_not_train(dense: pd.DataFrame) -> pd.Series:
    return dense["status"].isin(["collapsed", "failed"])


def _untrained(dense: pd.DataFrame) -> list[tuple[str, str]]:
    """The blocks whose dense network is at chance, or failed, on at least half of the seeds."""
    share = dense.assign(bad=_did_not_train(dense).astype(float)).groupby(BLOCK, sort=False)["bad"].mean()
    return [(str(dataset), str(architecture)) for dataset, architecture in share.index[share >= 0.5]]


def _denominators(part: pd.DataFrame, dense: pd.DataFrame) -> dict[str, pd.Series]:
    """For each method that ran, the accuracy that counts as 1 in each block: the `dense` network's, mean over seeds, if it was run.

    It is that at the defaults for tuned methods too, so that the two tables compare, and ordinary training's for all methods, so that
    none gains by a weaker dense network of its own. Where it was not run, each method's own mean `dense_accuracy`. A block
    whose dense network did not train has none. ValueError where a block has rows and nothing to divide by.
    """
    common, untrained = _block_means(dense, "accuracy"), _untrained(dense)
    found = {}
    for method, rows in part[part["status"] != "unsupported"].groupby("method", sort=False):
        own = _block_means(rows, "dense_accuracy").drop(untrained, errors="ignore")
        own.update(common)
        for dataset, architecture in own.index[~(own > 0)]:
            raise ValueError(f"'{method}' has rows on {dataset}/{architecture} and no dense accuracy to divide its area by")
        found[str(method)] = own
    return found


def _block_means(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows[column].astype(float).groupby([rows[name] for name in BLOCK]).mean()


def _over(curve: pd.DataFrame, dense: pd.Series) -> pd.DataFrame:
    """The curves over the dense accuracies of their blocks; blocks without one are left out."""
    ones = dense.reindex(curve.index.droplevel("seed")).to_numpy(float)
    return curve.div(ones, axis=0)[~np.isnan(ones)]


def accuracy(rows: pd.DataFrame) -> pd.Series:
    """Accuracy, with 0 where a row failed: a failure is the worst result, it does not vanish."""
    return rows["accuracy"].astype(float).where(rows["status"] != "failed", 0.0)


def curves(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> accuracy by (data set, architecture, seed) and sparsity, of the rows that are supported."""
    ran = part[part["status"] != "unsupported"].assign(value=accuracy)
    return {
        str(method): rows.pivot_table(index=[*BLOCK, "seed"], columns="sparsity", values="value", sort=False)
        for method, rows in ran.groupby("method", sort=False)
    }


def area(sparsity: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean height of the piecewise linear accuracy-sparsity curve over its range: the accuracy itself where there is one point."""
    order = np.argsort(sparsity)
    x, y = np.asarray(sparsity, float)[order], np.asarray(accuracy, float)[order]
    return float(y[0]) if len(x) == 1 else float(np.trapezoid(y, x) / (x[-1] - x[0]))


def areas(curve: pd.DataFrame) -> pd.Series:
    """Area by (data set, architecture, seed), over the sparsities that each line has; lines without any are left out."""
    order = np.argsort(curve.columns.to_numpy(float), kind="stable")
    x, y = curve.columns.to_numpy(float)[order], curve.to_numpy(float)[:, order]
    has = ~np.isnan(y)
    if len(x) > 1 and has.all():
        return pd.Series(np.trapezoid(y, x) / (x[-1] - x[0]), index=curve.index)
    values = [area(x[h].tolist(), line[h].tolist()) if h.any() else np.nan for line, h in zip(y, has, strict=True)]
    return pd.Series(values, index=curve.index, dtype=float).dropna()


def difference(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Area of a - area of b, paired by data set, architecture and seed, over the sparsities that both have there."""
    return areas(a - b)
