"""Cells, columns and tables of a page: values are shown rounded and sorted exactly. Contains no HTML."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

MISSING = "–"
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of an axis: the smallest with at most six steps is used


@dataclass(frozen=True)
class Bar:
    """An interval and its mean, as fractions of the axis in [0, 1]; `off`: the mean lies below the axis."""

    low: float
    mean: float
    high: float
    off: bool = False


@dataclass(frozen=True)
class Cell:
    """`text` is shown, `value` is the exact value for sorting ('' if missing), `note` is shown smaller, `hint` on hovering."""

    text: str
    value: str = ""
    note: str = ""
    hint: str = ""
    kind: str = "number"
    bar: Bar | None = None


@dataclass(frozen=True)
class Column:
    """`first`: sort direction of the first click, best on top. `axis`: labels of both ends of the bars. `mark`: position of 1 (dense).

    `key`: the filter that this column belongs to. `mean`: format of means over chosen blocks, if these make sense. `label`: the heading on
    small screens; '': group and title.
    """

    title: str
    group: str = ""
    hint: str = ""
    first: str = "descending"
    kind: str = "number"
    axis: tuple[str, str] | None = None
    mark: float | None = None  # fraction of the axis
    key: str = ""
    mean: str = ""
    label: str = ""

    @property
    def short(self) -> str:
        """The heading in one line."""
        return self.label or " ".join(f"{self.group} {self.title}".split())


@dataclass(frozen=True)
class Link:
    """A link: the text and the address."""

    text: str
    url: str


@dataclass(frozen=True)
class Line:
    """A row of a table. `remark`: a label, also a CSS class; `note`: shown next to the method; `papers`, `docs`: links of the method;
    `contributor`: who has contributed its rows.
    """

    method: str
    cells: list[Cell]
    dataset: str = ""
    architecture: str = ""
    remark: str = ""
    note: str = ""
    papers: tuple[Link, ...] = ()
    docs: str = ""
    contributor: str = ""


@dataclass(frozen=True)
class Table:
    """`ordered`: index of the column by which the lines are sorted, if any. `same`: (heading, text) of columns that are equal in all lines
    and therefore not shown. `stacked`: notes stand below their numbers. `left_out`: number of lines that are not shown.
    """

    columns: list[Column]
    lines: list[Line]
    ordered: int | None = None
    same: tuple[tuple[str, str], ...] = ()
    stacked: bool = False
    left_out: int = 0

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Common titles of neighbouring columns, each with its number of columns."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


def missing(value: Any) -> bool:
    """None, NaN, pd.NA."""
    return bool(pd.isna(value))


def words(value: Any) -> str:
    """A text of a table; '' for NaN, which is how pandas reads an empty cell."""
    return "" if missing(value) else str(value)


def number(value: Any, form: str = "{:.3f}", **more: Any) -> Cell:
    """A number, formatted for display, with its exact value."""
    if missing(value):
        return Cell(MISSING)
    return Cell(form.format(value), exact(value), **more)


def exact(value: Any) -> str:
    """A number as in the derived CSVs: ten significant digits, because further digits differ between processors and libraries."""
    return f"{float(value):.10g}"


def percent(value: Any, **more: Any) -> Cell:
    """A fraction as a percentage without the % sign; its exact value is the fraction."""
    return Cell(MISSING) if missing(value) else Cell(f"{100 * value:.1f}", exact(value), **more)


def text(value: Any, kind: str = "text") -> Cell:
    """A text, sorted alphabetically."""
    return Cell(words(value), words(value), kind=kind)


def ranks(low: Any, high: Any) -> str:
    """A range of ranks: '1', '2–4', or '–' for no rank."""
    return MISSING if missing(low) else f"{low}" if low == high else f"{low}–{high}"


def spread(mean: Any, low: Any, high: Any, form: str = "{:.3f}") -> str:
    """The interval of a mean: '±0.014', or '(0.700–1.000)' if it was cut to possible values; '' if unknown."""
    if missing(mean) or missing(low) or missing(high):
        return ""
    symmetric = math.isclose(high - mean, mean - low, rel_tol=1e-5, abs_tol=1e-8)  # read from a CSV, numbers have ten digits
    return "±" + form.replace(":+", ":").format(high - mean) if symmetric else f"({form.format(low)}–{form.format(high)})"


def lacking(blocks: Any, most: Any) -> str:
    """'3 of 4 blocks' for a method with fewer blocks than others in its table, else ''."""
    return "" if missing(blocks) or blocks == most else f"{blocks:.0f} of {most:.0f} blocks"


def axis(low: float, high: float) -> tuple[float, float, int]:
    """Round numbers below and above an interval, and the number of decimals they need."""
    step = next((s for s in STEPS if high - low <= 6 * s), STEPS[-1])
    ends = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return (*(ends if ends[0] < ends[1] else (ends[0], ends[0] + step)), 2 if step < 0.1 else 1)
