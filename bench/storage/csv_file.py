"""Read a CSV file that somebody else has written: the lines of cells, or one message with the line of the fault."""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

LONGEST = 131_072  # characters of a cell: the limit of Python's csv module
MOST_ENDS = 10_000  # different ends of lines that are remembered
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # also with apostrophes in front, so that removing one restores the text exactly


def neutralised(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet would run it as a formula."""
    return "'" + text if _FORMULA.match(text) else text


def restored(text: str) -> str:
    """The text from which `neutralised` made this one."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file, one after the other: (line of the file where it ends, cells).

    Args:
        path: path of the file.

    Raises:
        ValueError: it cannot be read, is not UTF-8, or is not a CSV file. The message is one line with the path and the line.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError(f"cannot read '{path}': it is not a plain file")
        with path.open("rb") as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            _check(path, file)
            file.seek(0)
            yield from _parsed(path, text)
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from None


def _check(path: Path, file: BinaryIO) -> None:
    """ValueError unless the file is UTF-8 without a byte-order mark and without zero bytes."""
    for number, line in enumerate(file, 1):
        if number == 1 and line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(
                f"'{path}' starts with a byte-order mark, as a spreadsheet writes it: spreadsheets change numbers; use the original"
            )
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"'{path}', line {number}: not UTF-8") from None
        if 0 in line:
            raise ValueError(f"'{path}', line {number}: a zero byte")


def _parsed(path: Path, text: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The cells of each record, as Python's csv module reads them. Ends of lines that many records share are read once."""
    ends: dict[str, list[str]] = {}
    number = 0
    for line in text:
        head, mark, end = line.partition('"')
        if mark and end in ends and head.endswith(",") and len(head) <= LONGEST:
            number += 1
            yield number, [*head[:-1].split(","), *ends[end]]
            continue
        reader = csv.reader(itertools.chain([line], text), strict=True)
        try:
            cells = next(reader)
        except csv.Error as error:
            reason = f"a cell has more than {LONGEST} characters" if "field limit" in str(error) else str(error)
            raise ValueError(f"'{path}', line {number + reader.line_num}: not CSV: {reason}") from None
        number += reader.line_num
        if reader.line_num == 1 and head.endswith(","):
            if len(ends) == MOST_ENDS:
                ends.clear()
            ends[end] = cells[head.count(",") :]
        yield number, cells
