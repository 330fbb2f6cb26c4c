"""verified.csv of a leaderboard: which rows a maintainer has computed again, when, and on which machine.

`verify --record` adds lines. A line names a row by its key and repeats the accuracy that was published then. It says nothing about a row
that has another accuracy now, so `publish` drops such lines, and `verify` reports them as faults.
"""

import csv
import datetime
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from bench.publishing.row_comparison import Pair, Verdict, unequal
from bench.spec.errors import UserError, printable
from bench.spec.row import DECLARED, KEY, Row
from bench.storage import csv_file, row_check

FILE = "verified.csv"
VERDICTS = {"equal": "bit-identical", "agrees": "the difference is within what the tests of `verify` allow"}


@dataclass(frozen=True, order=True)
class Verified:
    """One row that was computed again. All values are texts as they are written in the file.

    `key`: the values of the columns `KEY`. `published`, `computed`: accuracies, empty if the row has none. `verdict`: see `VERDICTS`.
    `date`: ISO 8601. `version`, `commit`, `torch`, `device`: where it was computed again.
    """

    key: tuple[str, ...]
    published: str
    computed: str
    verdict: str
    date: str
    version: str
    commit: str
    torch: str
    device: str


OWN = tuple(field.name for field in fields(Verified))[1:]
COLUMNS = (*KEY, *OWN)
_MEANING = {
    "published": "published test accuracy of the row", "computed": "test accuracy that was computed again",
    "verdict": "; ".join(f"{name}: {meaning}" for name, meaning in VERDICTS.items()), "date": "when it was computed again",
    "version": "version of razorbench that computed it again", "commit": "commit that computed it again",
    "torch": "version of torch that computed it again", "device": "device that computed it again",
}  # fmt: skip


def schema() -> dict[str, Any]:
    """The table schema of verified.csv."""
    own = [{"name": name, "type": "string", "description": _MEANING[name]} for name in OWN]
    of_rows = [{"name": name, "type": DECLARED[name].type, "description": DECLARED[name].meaning} for name in KEY]
    for field in own:
        field["type"] = {"published": "number", "computed": "number", "date": "date"}.get(field["name"], "string")
    return {"fields": of_rows + own, "primaryKey": list(KEY), "missingValues": [""]}


def key_of(row: Row) -> tuple[str, ...]:
    """The key of a row, as texts."""
    return tuple(map(str, row.identity))


def _accuracy(row: Row) -> str:
    return "" if row.accuracy is None else repr(row.accuracy)


def of(pair: Pair, verdict: Verdict, today: datetime.date) -> Verified | None:
    """The record of one comparison; None if the rows differ.

    Args:
        pair: published row, computed row.
        verdict: what the comparison has found.
        today: the date of the record.
    """
    row, got = pair
    if verdict.differences:
        return None
    word = "agrees" if unequal(row, got) else "equal"
    return Verified(
        key_of(row), _accuracy(row), _accuracy(got), word, today.isoformat(), got.version, got.commit, got.torch, got.device,
    )  # fmt: skip


def joined(old: Iterable[Verified], new: Iterable[Verified]) -> tuple[Verified, ...]:
    """All records, one per row; new ones replace old ones of the same row."""
    return tuple(sorted(({one.key: one for one in old} | {one.key: one for one in new}).values()))


def current(records: Iterable[Verified], rows: Iterable[Row]) -> tuple[Verified, ...]:
    """The records whose row has the accuracy that was verified."""
    records = tuple(records)
    if not records:
        return ()
    there = {key_of(row): _accuracy(row) for row in rows}
    return tuple(one for one in records if there.get(one.key) == one.published)


def text(records: Iterable[Verified]) -> str:
    """The content of verified.csv."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in sorted(records):
        writer.writerow([csv_file.neutralised(value) for value in (*one.key, *astuple(one)[1:])])
    return file.getvalue()


def read(path: Path) -> tuple[Verified, ...]:
    """The records of a file; none if there is no file.

    Raises:
        UserError: it is not a verified.csv.
    """
    if not path.exists():
        return ()
    found = []
    try:
        for number, (line, cells) in enumerate(csv_file.lines(path)):
            if number == 0 and tuple(cells) != COLUMNS:
                raise UserError(f"'{path}' does not have the columns of {FILE}: {', '.join(COLUMNS)}")
            if number:
                found.append(_record(path, line, [csv_file.restored(cell) for cell in cells]))
    except ValueError as error:
        raise UserError(str(error)) from None
    return tuple(found)


def _record(path: Path, line: int, cells: list[str]) -> Verified:
    """One line as a record. ValueError if it is malformed."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"'{path}', line {line}: {len(cells)} cells, expected {len(COLUMNS)}")
    one = Verified(tuple(cells[: len(KEY)]), *cells[len(KEY) :])
    odd = next((cell for cell in cells if row_check.CONTROL.search(cell)), None)
    if odd is not None:
        raise ValueError(f"'{path}', line {line}: '{printable(odd[:40])}' has control characters")
    for value in filter(None, (one.published, one.computed)):
        if not row_check.FORMS["number"].fullmatch(value) or not 0 <= float(value) <= 1:
            raise ValueError(f"'{path}', line {line}: {value[:40]!r} is not an accuracy in [0, 1]")
    if one.verdict not in VERDICTS:
        raise ValueError(f"'{path}', line {line}: verdict {one.verdict[:40]!r}, expected {' or '.join(VERDICTS)}")
    try:
        datetime.date.fromisoformat(one.date)
    except ValueError:
        raise ValueError(f"'{path}', line {line}: {one.date[:40]!r} is not a date such as 2026-01-31") from None
    return one


def faults(records: Iterable[Verified], rows: Iterable[Row]) -> Iterator[str]:
    """What is wrong with the records of a leaderboard, in words. `rows`: its rows."""
    records = tuple(records)
    valid = {one.key for one in current(records, rows)}
    wrong = [one for one in records if one.key not in valid]
    if wrong:
        some = f"{len(wrong)} record{'s' * (len(wrong) > 1)}"
        yield f"{FILE}: {some} of rows that are not published, or have another accuracy now, e.g. {' '.join(wrong[0].key)}"
    if len({one.key for one in records}) < len(records):
        yield f"{FILE}: two records of the same row"
