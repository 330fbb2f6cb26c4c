"""Tracks: the rows that may be compared, and their accuracy-sparsity curves relative to the dense network.

A track is a group of rows that may be compared (protocol, rule 6): one-shot after training, one-shot while training, one-shot at
initialisation, or fine-tuned for a given number of epochs; also with the same granularity and the same meaning of sparsity. Networks
that were not trained here (no epochs), and those whose statistics of batch norm were estimated again, are in tracks of their own. Rows
with default and with tuned hyperparameters are in different tracks (rule 4). A block is a data set with an architecture.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pandas as pd

from bench.spec.row import DECLARED, DENSE, KEY, Row

ONE_SHOT = {"after": "one-shot after training", "during": "one-shot while training", "init": "one-shot at initialisation"}
GIVEN = "one-shot on given weights"
BLOCK = ["dataset", "architecture"]
DECIDING = ("stage", "finetune_epochs", "granularity", "match", "epochs", "recalibration")  # the columns that decide a track
USED = (  # the columns that rankings and plots read; all columns would need too much memory
    *KEY, "criterion", "training", "stage", "status", "accuracy", "nll", "ece", "dense_accuracy", "parameters", "parameters_kept", "flops",
    "flops_kept", "score_seconds", "train_seconds", "latency_ms", "dense_latency_ms", "plugin_metrics", "training_flops",
    "dense_training_flops",
)  # fmt: skip


@dataclass(frozen=True)
class Track:
    """The rows of one track, and what follows from them for each method that ran.

    `dense`: method -> dense accuracy of each block. `curves`: method -> accuracies divided by the dense accuracy, in the form that the
    function `curves` returns. `unranked`: methods that trained for more epochs than the dense networks, and ablations.
    """

    name: str
    tuning: str
    rows: pd.DataFrame
    unranked: frozenset[str]
    dense: dict[str, pd.Series]
    curves: dict[str, pd.DataFrame]


def frame(rows: Iterable[Row], more: Iterable[str] = ()) -> pd.DataFrame:
    """Rows as a table for rankings and plots; ablations get their own method names, "name (ablation)".

    Args:
        rows: the rows.
        more: further columns of results.csv.

    Returns:
        A table with the columns `USED` and `more`, and with a column `track`.
    """
    table = columns(rows, dict.fromkeys((*USED, *more)))
    table["method"] = pd.Series(list(map(label, table["method"], table["ablation"])), dtype=object)
    table["track"] = names(table)
    return table


def columns(rows: Iterable[Row], names: Iterable[str]) -> pd.DataFrame:
    """Rows as a table with some of the columns of results.csv. Equal texts stay one object in memory."""
    rows = list(rows)
    found = {n: pd.Series(list(map(attrgetter(n), rows)), dtype=object if DECLARED[n].type == "string" else None) for n in names}
    return pd.DataFrame(found, copy=False)


def label(method: str, ablation: str) -> str:
    """The name under which the rows of a method, or of an ablation of it, are ranked."""
    return method if ablation in ("none", "") else f"{method} ({ablation})"


def names(table: pd.DataFrame) -> pd.Series:
    """The name of each row's track. `table`: the columns of results.csv."""
    return pd.Series([track_name(*kind) for kind in zip(*(table[name] for name in DECIDING), strict=True)], table.index, dtype=object)


def of_row(row: Row) -> str:
    """The name of the track of one row."""
    return track_name(*(getattr(row, name) for name in DECIDING))


@functools.cache
def track_name(
    stage: str, finetune_epochs: int, granularity: str = "weight", match: str = "weights", epochs: int = 1, recalibration: str = "none"
) -> str:  # fmt: skip
    """The name of a row's track.

    Args:
        stage: "after", "during" or "init"; "" for a dense network.
        finetune_epochs: number of fine-tuning epochs.
        granularity: what is removed.
        match: quantity that the sparsity is a fraction of.
        epochs: number of training epochs; 0 if given weights were pruned.
        recalibration: statistics that were estimated again after pruning.

    Returns:
        The name, or "" for a dense network.
    """
    if not stage:
        return ""
    if finetune_epochs:
        name = f"fine-tuned {finetune_epochs} epochs" + " from given weights" * (not epochs)
    else:
        name = ONE_SHOT[stage] if epochs else GIVEN
    name += f", {granularity}" * (granularity != "weight")
    name += f", equal {match}" * (match != "weights")
    return name + ", batch norm recalibrated" * (recalibration == "batchnorm")


def split(table: pd.DataFrame) -> Iterator[Track]:
    """The tracks of a table, one after the other, the one-shot tracks first. Rows of dense networks are in no track.

    Args:
        table: rows as `frame` returns them.

    Raises:
        ValueError: a method has rows in a block without any dense accuracy.
    """
    order = {name: place for place, name in enumerate([*ONE_SHOT.values(), GIVEN])}
    places = {key: found for key, found in table.groupby(["track", "tuning"], sort=False).indices.items() if key[0]}
    for name, tuning in sorted(places, key=lambda key: (order.get(key[0].partition(",")[0], len(order)), *key)):
        yield _track(str(name), str(tuning), table.iloc[places[name, tuning]], table)


def _track(name: str, tuning: str, part: pd.DataFrame, table: pd.DataFrame) -> Track:
    dense = _denominators(part, dense_rows(table, part))
    relative = {method: _over(curve, dense[method]) for method, curve in curves(part).items()}
    return Track(name, tuning, part, unranked(part, table), dense, relative)


def unranked(part: pd.DataFrame, table: pd.DataFrame) -> frozenset[str]:
    """The methods of a track that have no rank: ablations, and those that trained for more epochs than the dense networks.

    Args:
        part: the rows of the track.
        table: all rows, as `frame` returns them.
    """
    return frozenset(part.loc[(part["ablation"] != "none") | _over_budget(part, table), "method"])


def _over_budget(part: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Which rows trained for more epochs than the dense networks of their block (protocol, rule 4)."""
    same = (table["epochs"] > 0) == bool((part["epochs"] > 0).any())
    budget = table[(table["track"] == "") & same].groupby(BLOCK)["epochs"].min()
    own = pd.MultiIndex.from_frame(part[BLOCK])
    return pd.Series(part["epochs"].to_numpy() > budget.reindex(own).fillna(np.inf).to_numpy(), index=part.index)


def warnings(table: pd.DataFrame) -> list[str]:
    """One sentence for each block whose dense network did not train. `table`: rows as `frame` returns them."""
    said = []
    pruned = table.loc[table["track"] != "", ["finetune_epochs", "epochs", "recalibration"]]
    for (finetuned, _, _), part in pruned.groupby(["finetune_epochs", pruned["epochs"] > 0, "recalibration"]):
        dense = dense_rows(table, part)
        for dataset, architecture in untrained(dense):
            bad = _did_not_train(dense[(dense["dataset"] == dataset) & (dense["architecture"] == architecture)])
            after = f" with {finetuned} epochs of fine-tuning" * bool(finetuned)
            said.append(
                f"{dataset}/{architecture}{after}: the dense network did not train (chance accuracy, or an error) on {bad.sum()} of "
                f"{len(bad)} seeds. This block is left out of areas, ranks and sparsities within one point of dense."
            )
    return said


def dense_rows(table: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """The rows of the `dense` networks with default hyperparameters that the rows of a track are compared with.

    They have the same number of fine-tuning epochs and the same recalibration, and were trained, or were given, as those of the track.
    """
    first = part.iloc[0]
    same = (table["finetune_epochs"] == first["finetune_epochs"]) & (table["recalibration"] == first["recalibration"])
    given = (table["epochs"] > 0) == (first["epochs"] > 0)
    return table[(table["method"] == DENSE) & (table["tuning"] == "default") & same & given]


def _did_not_train(dense: pd.DataFrame) -> pd.Series:
    return dense["status"].isin(["collapsed", "failed"])


def untrained(dense: pd.DataFrame) -> list[tuple[str, str]]:
    """The blocks whose dense network failed or has chance accuracy on at least half of the seeds."""
    share = dense.assign(bad=_did_not_train(dense).astype(float)).groupby(BLOCK, sort=False)["bad"].mean()
    return [(str(dataset), str(architecture)) for dataset, architecture in share.index[share >= 0.5]]


def _denominators(part: pd.DataFrame, dense: pd.DataFrame) -> dict[str, pd.Series]:
    """Method -> the dense accuracy of each block, mean over seeds.

    This is the accuracy of the `dense` network: ordinary training with default hyperparameters. It is the same for all methods, so that
    no method benefits from a weaker dense network of its own, and also for tuned methods, so that both tables can be compared. If it
    was not run, each method's own mean `dense_accuracy` is used. Blocks whose dense network did not train are left out. ValueError for
    a block with rows but without a dense accuracy.
    """
    common, bad = _block_means(dense, "accuracy"), untrained(dense)
    found = {}
    for method, rows in part[part["status"] != "unsupported"].groupby("method", sort=False):
        own = _block_means(rows, "dense_accuracy").drop(bad, errors="ignore")
        own.update(common)
        for dataset, architecture in own.index[~(own > 0)]:
            raise ValueError(f"'{method}' has rows on {dataset}/{architecture} but no dense accuracy to divide its area by")
        found[str(method)] = own
    return found


def _block_means(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows[column].astype(float).groupby([rows[name] for name in BLOCK]).mean()


def _over(curve: pd.DataFrame, dense: pd.Series) -> pd.DataFrame:
    """The curves divided by the dense accuracies of their blocks; blocks without a dense accuracy are left out."""
    ones = dense.reindex(curve.index.droplevel("seed")).to_numpy(float)
    return curve.div(ones, axis=0)[~np.isnan(ones)]


def accuracy(rows: pd.DataFrame) -> pd.Series:
    """Accuracy of each row; failed rows count as 0, so that failing is never better than a low accuracy."""
    return rows["accuracy"].astype(float).where(rows["status"] != "failed", 0.0)


def curves(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> accuracies: one line per (data set, architecture, seed), one column per sparsity; without unsupported rows."""
    ran = part.loc[part["status"] != "unsupported", [*BLOCK, "seed", "sparsity", "method", "status", "accuracy"]].assign(value=accuracy)
    return {str(method): pivoted(rows, "value") for method, rows in ran.groupby("method", sort=False)}


def pivoted(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The means of a column: one line per (data set, architecture, seed), one column per sparsity, both in the order of the rows.

    It is the pivot table of pandas, which takes several times as long.
    """
    found, (at, sparsities) = [pd.factorize(rows[name]) for name in (*BLOCK, "seed")], pd.factorize(rows["sparsity"])
    line = np.zeros(len(rows), int)
    for codes, values in found:
        line = line * len(values) + codes
    measured = rows[column].to_numpy(float)
    there = ~np.isnan(measured)
    _, first, line = np.unique(line[there], return_index=True, return_inverse=True)
    filled = pd.Series(measured[there]).groupby(line * len(sparsities) + at[there]).mean()
    means = np.full(len(first) * len(sparsities), np.nan)
    means[filled.index] = filled
    codes, used = [codes[there][first] for codes, _ in found], np.unique(at[there])
    index = pd.MultiIndex([pd.Index(values) for _, values in found], codes, names=[*BLOCK, "seed"])
    table = pd.DataFrame(means.reshape(len(first), len(sparsities)), index, pd.Index(sparsities, name="sparsity"))
    return table.iloc[:, used] if len(used) < len(sparsities) else table


def area(sparsity: Sequence[float], accuracy: Sequence[float]) -> float:
    """Area under the piecewise linear accuracy-sparsity curve, divided by the range of sparsities.

    Args:
        sparsity: n sparsities, each once, in any order.
        accuracy: the n accuracies.

    Returns:
        The mean height of the curve, in the unit of the accuracies; for n = 1 the accuracy itself.
    """
    order = np.argsort(sparsity)
    x, y = np.asarray(sparsity, float)[order], np.asarray(accuracy, float)[order]
    return float(y[0]) if len(x) == 1 else float(np.trapezoid(y, x) / (x[-1] - x[0]))


def areas(curve: pd.DataFrame) -> pd.Series:
    """The area of each line of `curve`, over the sparsities where it has a value; lines without values are left out."""
    order = np.argsort(curve.columns.to_numpy(float), kind="stable")
    x, y = curve.columns.to_numpy(float)[order], curve.to_numpy(float)[:, order]
    has = ~np.isnan(y)
    if len(x) > 1 and has.all():
        return pd.Series(np.trapezoid(y, x) / (x[-1] - x[0]), index=curve.index)
    values = [area(x[h].tolist(), line[h].tolist()) if h.any() else np.nan for line, h in zip(y, has, strict=True)]
    return pd.Series(values, index=curve.index, dtype=float).dropna()


def difference(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Differences in area of two methods, paired by data set, architecture and seed.

    Args:
        a: the curves of one method, as `curves` returns them.
        b: the curves of the other method.

    Returns:
        Area of a - area of b, over the sparsities that both have for this data set, architecture and seed.
    """
    same = a.columns.equals(b.columns) and a.index.equals(b.index)  # pandas compares them slowly
    return areas(pd.DataFrame(a.to_numpy() - b.to_numpy(), a.index, a.columns) if same else a - b)
