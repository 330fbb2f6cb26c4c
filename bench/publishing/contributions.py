"""The mark of contributed rows: contributions.csv in the folder of a leaderboard says who has contributed which rows.

`publish --merge` and `submit` add lines for the rows that they add. Rows that `publish` writes from the store have no line: they are the
maintainers' own. A method comes with all its cells and seeds. So one line stands for all rows of a method with its tuning and ablation.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.spec.errors import UserError, printable
from bench.spec.row import ABLATIONS, Row
from bench.storage import csv_file, row_check

FILE = "contributions.csv"
UNNAMED = "not named"  # the contributor of rows that a maintainer merges without a name
LONGEST = 100  # characters of a contributor's name
TUNINGS = ("default", "tuned")


def _column(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True, order=True)
class Contribution:
    """Who has contributed the rows of a method, with one tuning and one ablation. The fields are the columns of contributions.csv."""

    method: str = _column("method, or dense reference, whose rows were contributed")
    tuning: str = _column("hyperparameters of these rows: default, or tuned")
    ablation: str = _column("control instead of the method's own network: none, shuffle or reinit")
    contributor: str = _column("who has contributed these rows")

    @property
    def key(self) -> tuple[str, str, str]:
        """Method, tuning and ablation."""
        return self.method, self.tuning, self.ablation


COLUMNS = {column.name: str(column.metadata["meaning"]) for column in fields(Contribution)}  # name -> meaning


def of_rows(rows: Iterable[Row], contributor: str) -> list[Contribution]:
    """The lines for rows of one contributor.

    Args:
        rows: the rows that are added to a leaderboard.
        contributor: the name.

    Raises:
        UserError: the name is empty, too long, or has characters that cannot be printed.
    """
    fault = _fault_of_name(contributor)
    if fault:
        raise UserError(f"the contributor's name {fault}")
    return sorted({Contribution(row.method, row.tuning, row.ablation, contributor) for row in rows})


def text(contributions: Iterable[Contribution]) -> str:
    """The content of contributions.csv."""
    written = io.StringIO()
    lines = ([csv_file.neutralised(cell) for cell in astuple(line)] for line in sorted(contributions))
    csv.writer(written, lineterminator="\n").writerows([COLUMNS, *lines])
    return written.getvalue()


def read(folder: Path) -> tuple[Contribution, ...]:
    """The contributions of a leaderboard; none if its folder has no contributions.csv.

    Raises:
        UserError: the file cannot be read, or a line of it is wrong.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    found: dict[tuple[str, str, str], Contribution] = {}
    try:
        for number, (line, cells) in enumerate(csv_file.lines(path)):
            if number == 0:
                if cells != list(COLUMNS):
                    raise ValueError(f"'{path}': the columns must be {','.join(COLUMNS)}")
                continue
            made, fault = _line(cells)
            if made is None or made.key in found:
                raise ValueError(f"'{path}', line {line}: {fault or 'these rows have a line already'}")
            found[made.key] = made
    except ValueError as error:
        raise UserError(str(error)) from None
    return tuple(found.values())


def in_words(contributions: Iterable[Contribution]) -> str:
    """'spam (Ada), obd tuned (Ada)', without dense references; '' if there are none."""
    named = [line for line in contributions if line.method.partition("@")[0] != "dense"]
    labels = [(" ".join((c.method, *(v for v in (c.tuning, c.ablation) if v not in ("default", "none")))), c.contributor) for c in named]
    return ", ".join(f"{label} ({contributor})" for label, contributor in labels)


def _line(cells: list[str]) -> tuple[Contribution | None, str]:
    """The contribution of a line, or None and what is wrong."""
    if len(cells) != len(COLUMNS):
        return None, f"{len(cells)} cells, expected {len(COLUMNS)}"
    made = Contribution(*map(csv_file.restored, cells))
    for name, value, allowed in (("tuning", made.tuning, TUNINGS), ("ablation", made.ablation, ("none", *ABLATIONS))):
        if value not in allowed:
            return None, f"{name} must be one of {', '.join(allowed)}, got '{printable(value[:40])}'"
    if row_check.CONTROL.search(made.method):
        return None, f"the method '{printable(made.method[:40])}' has control characters"
    fault = _fault_of_name(made.contributor)
    return (None, f"the contributor's name {fault}") if fault else (made, "")


def _fault_of_name(name: str) -> str:
    if not name.strip():
        return "is empty"
    if len(name) > LONGEST:
        return f"has more than {LONGEST} characters"
    return "has characters that cannot be printed" if not name.isprintable() else ""
