"""Numbers that papers report (reported.csv), compared with the rows of a leaderboard that have the same settings.

A line of reported.csv is one number of one paper, with its source. It is compared only if a leaderboard has rows of the same method, data
set, architecture, granularity, sparsity and epochs, with all training images or the same number of them, and with default hyperparameters.
Other settings of the paper's recipe are the responsibility of those who add a line.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources

import pandas as pd

from bench.spec.row import DECLARED

SAME = ("method", "dataset", "architecture", "granularity", "match", "sparsity", "epochs", "finetune_epochs")
COLUMNS = (*SAME, "train_limit", "metric", "value", "paper", "place", "url")


@dataclass(frozen=True)
class Comparison:
    """A number of a paper and the mean of the rows with the same settings.

    `metric`: a column of results.csv. `fraction`: whether it is a fraction. `place`: table or figure of the paper.
    """

    method: str
    dataset: str
    architecture: str
    sparsity: float
    metric: str
    value: float
    measured: float
    seeds: int
    paper: str
    place: str
    url: str

    @property
    def fraction(self) -> bool:
        """Whether the metric is a fraction, which is shown in percent."""
        return DECLARED[self.metric].unit == "fraction"


def entries() -> list[dict[str, str]]:
    """The lines of reported.csv."""
    text = (resources.files("bench.publishing") / "reported.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def compared(
    rows: pd.DataFrame, train_limit: Callable[[str, str], int | None], found: Iterable[dict[str, str]]
) -> tuple[Comparison, ...]:  # fmt: skip
    """The reported numbers whose settings a leaderboard has.

    Args:
        rows: its rows, with the columns of results.csv that are used.
        train_limit: (data set, architecture) -> largest number of training examples; None: all.
        found: lines of reported.csv.
    """
    plain = rows[(rows["tuning"] == "default") & (rows["ablation"] == "none") & rows["status"].isin(["ok", "collapsed"])]
    made = []
    for entry in found:
        if (int(entry["train_limit"]) if entry["train_limit"] else None) != train_limit(entry["dataset"], entry["architecture"]):
            continue
        own = plain
        for name in SAME:
            own = own[own[name] == (entry[name] if DECLARED[name].type == "string" else float(entry[name]))]
        values = own[entry["metric"]].astype(float).dropna()
        if len(values):
            made.append(Comparison(
                entry["method"], entry["dataset"], entry["architecture"], float(entry["sparsity"]), entry["metric"], float(entry["value"]),
                float(values.mean()), len(values), entry["paper"], entry["place"], entry["url"],
            ))  # fmt: skip
    return tuple(made)
