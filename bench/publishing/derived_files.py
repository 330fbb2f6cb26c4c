"""The files of a leaderboard that follow from its evidence. Rebuilding them gives the same bytes.

Numbers in derived tables have ten significant digits. Differences between processors and libraries are smaller.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from bench.publishing import contributions, datapackage, history, reported
from bench.publishing.contributions import Contribution
from bench.publishing.page import blocks, page
from bench.publishing.plots import curves
from bench.publishing.verified import Verified
from bench.ranking import leaderboard, tracks, tuning_gain
from bench.spec.suite import Suite
from bench.storage import results_csv
from bench.storage.contents import Contents

if TYPE_CHECKING:
    from bench.publishing.board_folder import Board

DIGITS = "%.10g"
SHOWN = {  # plots on the page, with their titles; the other plots are files only
    "accuracy": "Accuracy against sparsity", "ranks": page.RANKS, "flops": "Accuracy against FLOPs",
    "latency": "Accuracy against latency",
}  # fmt: skip


@dataclass(frozen=True)
class Tables:
    """What derived files need of the rows of a board, in the order of results.csv.

    `rows`: their columns that the page uses. `gains`: tuned.csv. `verified`, `history`, `contributions`: the records of the board.
    """

    rows: pd.DataFrame
    gains: pd.DataFrame
    verified: tuple[Verified, ...]
    history: str
    contributions: tuple[Contribution, ...]


def tables(board: "Board") -> Tables:
    """The tables of a board. They need less memory than its rows."""
    rows = results_csv.ordered(board.rows)
    table = tracks.columns(rows, page.USED)
    return Tables(table, tuning_gain.tuned(rows), board.verified, board.history, board.contributions)


def files_of(suite: Suite, own: Contents, found: Tables) -> dict[str, bytes]:
    """The derived files of a board that is not in memory any more.

    Args:
        suite: its suite.
        own: its evidence.
        found: its tables.
    """
    gains, rows = found.gains, page.prepared(found.rows)
    table, resolutions = leaderboard.ranked(rows)
    files = {"leaderboard.csv": results_csv.table_text(table, DIGITS).encode()}
    if len(gains):
        files["tuned.csv"] = results_csv.table_text(gains, DIGITS).encode()
    by_block = blocks.measured(rows)
    files[blocks.FILE] = results_csv.table_text(by_block, DIGITS).encode()
    csvs = own.only(name for name in own if name.endswith(".csv")) | files
    files |= datapackage.schema_files(csvs)
    files["datapackage.json"] = datapackage.package(suite, csvs).encode()
    pictures = curves.draw(rows, table)
    more = page.More(
        plots={f"plots/{name}": _title(name) for name in pictures if name.startswith(tuple(SHOWN)) and name.endswith(".svg")},
        verified=found.verified,
        history=tuple(history.entries(found.history)),
        reported=reported.compared(rows, lambda *block: suite.protocol(*block).train_limit, reported.entries()),
        measured=by_block,
        resolutions=resolutions,
        files=tuple(sorted(name for name in own if name.startswith("results/"))),
        contributed=found.contributions,
    )
    files["index.html"] = page.page(suite.name, _description(suite, found), table, gains, rows, more).encode()
    return files | {f"plots/{name}": content for name, content in pictures.items()}


def _description(suite: Suite, found: Tables) -> str:
    """The description of the suite, and who has contributed rows."""
    contributed = contributions.in_words(found.contributions)
    return ". ".join(filter(None, (suite.description, f"Contributed rows: {contributed}" if contributed else "")))


def _title(picture: str) -> str:
    """The title of a plot: "ranks-fine-tuned-2-epochs.svg" -> "Ranks and intervals: fine tuned 2 epochs"."""
    kind, _, track = picture.removesuffix(".svg").partition("-")
    return f"{SHOWN[kind]}: {track.replace('-', ' ')}"
