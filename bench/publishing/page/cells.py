"""What a page's tables are made of: cells that are shown rounded and sort exactly. No HTML here."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

MISSING = "–"
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of an axis: the finest that divides it into at most six


@dataclass(frozen=True)
class Bar:
    """An interval and its middle, as shares of the axis in [0, 1]; `off`: it lies below the axis."""

    low: float
    mean: float
    high: float
    off: bool = False


@dataclass(frozen=True)
class Cell:
    """`text` is shown, `value` is exact and sorts ('' for what is missing), `note` is set smaller, `hint` shows on hovering."""

    text: str
    value: str = ""
    note: str = ""
    hint: str = ""
    kind: str = "number"
    bar: Bar | None = None


@dataclass(frozen=True)
class Column:
    """`first`: the direction of the first click, which brings the best to the top. `axis`: the ends of the bars drawn in it."""

    title: str
    group: str = ""
    hint: str = ""
    first: str = "descending"
    kind: str = "number"
    axis: tuple[str, str] | None = None
    mark: float | None = None  # where on the axis a line stands for "as good as dense"


@dataclass(frozen=True)
class Line:
    """A row of a table with what the filters look at. `remark`: a mark of the line, also a class; `note`: stands beside the method."""

    method: str
    cells: list[Cell]
    dataset: str = ""
    architecture: str = ""
    remark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """`ordered`: the column by which the lines come, if any."""

    columns: list[Column]
    lines: list[Line]
    ordered: int | None = None

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns' common titles, with how many columns each spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans

    @property
    def datasets(self) -> list[str]:
        """Data sets to choose among."""
        return sorted({line.dataset for line in self.lines} - {""})

    @property
    def architectures(self) -> list[str]:
        """Architectures to choose among."""
        return sorted({line.architecture for line in self.lines} - {""})


def missing(value: Any) -> bool:
    """None, NaN, pd.NA."""
    return bool(pd.isna(value))


def words(value: Any) -> str:
    """A text of a table; '' where it is empty, which pandas reads as NaN."""
    return "" if missing(value) else str(value)


def number(value: Any, form: str = "{:.3f}", **more: Any) -> Cell:
    """A number as the format says, exact behind it."""
    if missing(value):
        return Cell(MISSING)
    return Cell(form.format(value), exact(value), **more)


def exact(value: Any) -> str:
    """As the derived CSVs have it: ten significant digits, for further ones differ between processors and libraries."""
    return f"{float(value):.10g}"


def percent(value: Any, **more: Any) -> Cell:
    """A fraction as a percentage without the sign; exact as the fraction."""
    return Cell(MISSING) if missing(value) else Cell(f"{100 * value:.1f}", exact(value), **more)


def text(value: Any, kind: str = "text") -> Cell:
    """A word that sorts as it reads."""
    return Cell(words(value), words(value), kind=kind)


def ranks(low: Any, high: Any) -> str:
    """A range of ranks: '1', '2–4', '–' where there is none."""
    return MISSING if missing(low) else f"{low}" if low == high else f"{low}–{high}"


def spread(mean: Any, low: Any, high: Any, form: str = "{:.3f}") -> str:
    """An interval beside its mean: '±0.014', or its ends, '(0.700–1.000)', where it was cut to what is possible; '' if unknown."""
    if missing(mean) or missing(low) or missing(high):
        return ""
    symmetric = math.isclose(high - mean, mean - low, rel_tol=1e-5, abs_tol=1e-8)  # read from a CSV, numbers have ten digits
    return "±" + form.replace(":+", ":").format(high - mean) if symmetric else f"({form.format(low)}–{form.format(high)})"


def lacking(blocks: Any, most: Any) -> str:
    """'3 of 4 blocks' for a method that lacks some of those that others of its table have, else ''."""
    return "" if missing(blocks) or blocks == most else f"{blocks:.0f} of {most:.0f} blocks"


def axis(low: float, high: float) -> tuple[float, float, int]:
    """Round ends around an interval, and how many decimals they need."""
    step = next((s for s in STEPS if high - low <= 6 * s), STEPS[-1])
    ends = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return (*(ends if ends[0] < ends[1] else (ends[0], ends[0] + step)), 2 if step < 0.1 else 1)
