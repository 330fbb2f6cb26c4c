"""leaderboards/index.html: one line for each leaderboard, computed from its small files, not from its rows."""

import io
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from bench.publishing import history, verified
from bench.publishing.board_folder import HISTORY, SUITE
from bench.publishing.page.cells import Cell, Column, Line, Table, number, text
from bench.publishing.page.page import rendered
from bench.spec.errors import UserError

FILE = "index.html"
TITLE = "razorbench leaderboards"
READ = (SUITE, "leaderboard.csv", verified.FILE, HISTORY)
Read = Callable[[str], bytes]  # the content of a file of a leaderboard, b"" if there is none


def overview(parent: Path, changed: Mapping[str, Mapping[str, bytes]] | None = None) -> bytes:
    """The page of all leaderboards in a folder.

    Args:
        parent: the folder of the leaderboards.
        changed: name of a leaderboard -> its files, where they are not those in the folder.

    Raises:
        UserError: the files of a leaderboard cannot be read.
    """
    changed = changed or {}
    found = (path.parent for path in parent.glob("*/leaderboard.csv"))
    names = {path.name for path in found if (path / SUITE).is_file() and (path / "results").is_dir()}  # not the output of a run
    lines = [_read(parent / name, changed.get(name)) for name in sorted(names | changed.keys())]
    columns = [Column("Leaderboard", first="ascending", kind="text"), Column("What it compares", first="ascending", kind="text")]
    columns += [Column("Data sets", first="ascending", kind="text"), Column("Architectures", first="ascending", kind="text")]
    columns += [Column(title) for title in ("Methods", "Blocks", "Seeds")] + [Column("Rows", hint="without those of dense networks")]
    columns.append(Column("Verified", hint="rows that a maintainer has computed again: they agree"))
    columns.append(Column("Last change", kind="text"))
    return rendered("index.html", title=TITLE, table=Table(columns, lines)).encode()


def _read(folder: Path, files: Mapping[str, bytes] | None) -> Line:
    """The line of a leaderboard. UserError if its files cannot be read."""
    try:
        if files is None:
            files = {name: (folder / name).read_bytes() for name in READ if (folder / name).is_file()}
        return _line(folder.name, lambda name: files.get(name, b""))
    except (OSError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{folder}' is not a leaderboard that can be listed in '{folder.parent / FILE}': {reason}") from None


def _line(name: str, read: Read) -> Line:
    suite = tomllib.loads(read(SUITE).decode())
    board = pd.read_csv(io.BytesIO(read("leaderboard.csv")))
    changes = history.entries(read(HISTORY).decode())
    blocks = suite.get("blocks", [])
    architectures = dict.fromkeys(one for block in blocks for one in block["architectures"])
    records = max(0, len(read(verified.FILE).splitlines()) - 1)
    plain = board[~board["method"].astype(str).str.contains(r" \((?:shuffle|reinit)\)$")]
    largest = {column: board[column].max() if len(board) else 0 for column in ("blocks", "seeds")}
    return Line(name, [
        Cell(name, name, hint=f"{name}/index.html", kind="link"), text(suite.get("description", ""), "prose"),
        text(", ".join(dict.fromkeys(block["dataset"] for block in blocks)), "prose"), text(", ".join(architectures), "prose"),
        number(plain["method"].nunique(), "{:.0f}"), number(largest["blocks"], "{:.0f}"), number(largest["seeds"], "{:.0f}"),
        number(board["rows"].sum(), "{:,.0f}"), number(records, "{:,.0f}"), text(changes[0].date if changes else ""),
    ])  # fmt: skip
