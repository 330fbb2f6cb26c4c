"""The result of tuning: one line per method, block (data set and architecture) and number of fine-tuning epochs."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.ranking.tracks import area
from bench.spec.row import DECLARED, Row
from bench.spec.setting import Setting, decoded

CELL = ["dataset", "architecture", "granularity", "match", "method", "finetune_epochs"]


@dataclass(frozen=True)
class GainColumn:
    """A column of tuned.csv. `title` and `group`: its heading on the page; empty if it is not shown there as a number."""

    name: str
    type: str
    meaning: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    required: bool = False
    title: str = ""
    group: str = ""
    format: str = "{:.3f}"


def _of_row(name: str) -> GainColumn:
    return GainColumn(name, "string", DECLARED[name].meaning, required=True)


def _share(name: str, meaning: str, title: str, group: str) -> GainColumn:
    return GainColumn(name, "number", meaning, "fraction", 0, 1, title=title, group=group)


BOARD = (
    *(_of_row(name) for name in CELL[:-1]),
    GainColumn("finetune_epochs", "integer", DECLARED["finetune_epochs"].meaning, "epochs", 0),
    GainColumn("trials", "integer", "number of trials of the search", "trials", 1, title="Trials", group="Cost", format="{:.0f}"),
    GainColumn(
        "tuning_epochs", "integer", "training epochs used by this search (without the networks shared by all methods)", "epochs", 0,
        title="Epochs", group="Cost", format="{:.4g}",
    ),
    _share(
        "validation_default", "mean accuracy of the pruned networks on validation data, which the search compares", "Defaults", "Validation"
    ),
    _share("validation_tuned", "the same with the selected hyperparameters", "Tuned", "Validation"),
    _share("area_default", "area on test data with default hyperparameters, mean over seeds", "Defaults", "Area"),
    _share("area_tuned", "the same with tuned hyperparameters", "Tuned", "Area"),
    GainColumn(
        "gain", "number", "area_tuned - area_default (positive: tuning helped)", "", -1, 1, title="Gain", group="Area", format="{:+.3f}"
    ),
    GainColumn("seeds", "integer", "seeds", "seeds", 1),
    GainColumn("hyperparameters", "string", "the selected hyperparameters, as a JSON object", required=True),
)  # fmt: skip
COLUMNS = tuple(column.name for column in BOARD)
SHOWN = tuple(sorted((column for column in BOARD if column.title), key=lambda column: ("Area", "Validation", "Cost").index(column.group)))


def tuned(rows: Iterable[Row]) -> pd.DataFrame:
    """A table with the columns `COLUMNS`, computed from the rows only: one line per tuned method, block and fine-tuning epochs.

    - `area_default`, `area_tuned`: mean over seeds of the area under the accuracy-sparsity curve on test data, over the seeds and
      sparsities that both have; failed rows count as accuracy 0. `gain` = `area_tuned` - `area_default`.
    - `validation_default`, `validation_tuned`: mean pruned accuracy on validation data over all sparsities, as measured by the search.
    - `trials`, `tuning_epochs`: the cost of the search, without training the networks shared by all methods.
    """
    kept = [row for row in rows if row.criterion and row.ablation == "none" and row.status != "unsupported"]
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in kept:
        cells.setdefault(tuple(getattr(row, name) for name in CELL), {}).setdefault(row.tuning, []).append(row)
    lines = [_line(cell, found) for cell, found in cells.items() if "tuned" in found]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def chosen(rows: Iterable[Row]) -> dict[tuple[str, str, str], Setting]:
    """The tuned hyperparameters in published rows.

    Args:
        rows: rows of results; those with default hyperparameters are ignored.

    Returns:
        (data set, architecture, method) -> the selected hyperparameters.

    Raises:
        ValueError: a tuned row does not contain the result of its search.
    """
    found: dict[tuple[str, str, str], Setting] = {}
    for row in rows:
        if row.tuning != "tuned" or not row.criterion:
            continue
        cell, said = (row.dataset, row.architecture, row.method), decoded(row.hyperparameters)
        if said.search is None:
            raise ValueError(f"tuned row of {row.method} without the entry `tuning` in `hyperparameters`")
        if cell not in found or said.finetune_lr_scale is not None:  # only rows with fine-tuning contain its learning rate
            found[cell] = said
    return found


def _line(cell: tuple[Any, ...], found: dict[str, list[Row]]) -> dict[str, Any]:
    setting = decoded(found["tuned"][0].hyperparameters)
    search = setting.search
    default, tuned = _shared(found.get("default", []), found["tuned"])
    before, after = _area(default), _area(tuned)
    return {
        **dict(zip(CELL, cell, strict=True)),
        "trials": search.trials if search else None,
        "tuning_epochs": search.epochs if search else None,
        "validation_default": search.default_accuracy if search else None,
        "validation_tuned": search.accuracy if search else None,
        "area_default": before,
        "area_tuned": after,
        "gain": after - before,
        "seeds": len({row.seed for row in found["tuned"]}),
        "hyperparameters": dataclasses.replace(setting, search=None).encoded(),
    }


def _shared(default: list[Row], tuned: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the seeds and sparsities that both have; all tuned rows if there are no others."""
    if not default:
        return default, tuned
    both = {(row.seed, row.sparsity) for row in default} & {(row.seed, row.sparsity) for row in tuned}
    kept = [[row for row in rows if (row.seed, row.sparsity) in both] for rows in (default, tuned)]
    return kept[0], kept[1]


def _area(rows: list[Row]) -> float:
    """Mean over seeds; NaN without rows."""
    curves: dict[int, list[Row]] = {}
    for row in rows:
        curves.setdefault(row.seed, []).append(row)
    areas = [area([r.sparsity for r in c], [0.0 if r.status == "failed" else float(r.accuracy or 0.0) for r in c]) for c in curves.values()]
    return sum(areas) / len(areas) if areas else float("nan")
