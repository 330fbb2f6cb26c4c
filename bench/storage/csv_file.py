"""Read a CSV file that somebody else has written: the lines of cells, or one message with the line of the fault."""

import csv
import io
import re
from pathlib import Path

LONGEST = 131_072  # characters of a cell: the limit of Python's csv module
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # also with apostrophes in front, so that removing one restores the text exactly


def neutralised(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet would run it as a formula."""
    return "'" + text if _FORMULA.match(text) else text


def restored(text: str) -> str:
    """The text from which `neutralised` made this one."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def lines(path: Path) -> list[tuple[int, list[str]]]:
    """All lines of a CSV file: (line of the file where they end, cells).

    Args:
        path: path of the file.

    Raises:
        ValueError: it cannot be read, is not UTF-8, or is not a CSV file. The message is one line with the path and the line.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError(f"cannot read '{path}': it is not a plain file")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from None
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(
            f"'{path}' starts with a byte-order mark, as a spreadsheet writes it: spreadsheets change numbers; use the original"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}', line {content[: error.start].count(10) + 1}: not UTF-8") from None
    if "\0" in text:
        raise ValueError(f"'{path}', line {text[: text.index(chr(0))].count(chr(10)) + 1}: a zero byte")
    return _parsed(path, text)


def _parsed(path: Path, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found = []
    try:
        for cells in reader:
            found.append((reader.line_num, cells))
    except csv.Error as error:
        reason = f"a cell has more than {LONGEST} characters" if "field limit" in str(error) else str(error)
        raise ValueError(f"'{path}', line {reader.line_num}: not CSV: {reason}") from None
    return found
