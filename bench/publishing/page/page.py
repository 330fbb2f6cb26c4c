"""One static HTML page for a published leaderboard. The same input gives the same bytes.

The page needs no server. Next to it stand the files that it links to: CSV files and plots. Names, errors and hyperparameters come from CSV
files of other people and may be hostile. Jinja escapes every text. A content security policy with hashes allows only this page's own script
and style, and pictures and data of the page's own site. Plots are shown as images, so scripts in them never run.
"""

import base64
import hashlib
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pandas as pd

from bench.publishing.contributions import Contribution
from bench.publishing.history import Entry
from bench.publishing.page import about, board_columns, cells, extras, tables
from bench.publishing.reported import Comparison
from bench.publishing.verified import Verified
from bench.ranking import leaderboard, tracks
from bench.spec.row import COLLAPSED

TEMPLATES = resources.files("bench.publishing.page") / "templates"
TEXTS = (
    "dataset", "architecture", "granularity", "match", "method", "criterion", "training", "stage", "tuning", "ablation", "status", "error",
)  # fmt: skip
USED = tuple(dict.fromkeys((*TEXTS, *tracks.USED, "hyperparameters", "protocol", "version", "commit", "torch", "device")))
RANKS = "Ranks and intervals"  # the title of the plot that comes first where it is a critical-difference diagram
CONSTANTS = {"interval": board_columns.INTERVAL, "collapsed": COLLAPSED, "coarsest": leaderboard.COARSEST, "ranks": RANKS}
POLICY = (
    "default-src 'none'; style-src '{style}'; script-src '{script}'; img-src 'self' file: data:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'"
)


@dataclass(frozen=True)
class More:
    """What a page shows besides the results.

    `plots`: path of a picture, relative to the page -> its title. A plot is shown under the track (and ", tuned") that its title contains.
    `verified`: records of rows that were computed again. `history`: the changelog, the latest entry first. `reported`: numbers of papers.
    `measured`: blocks.csv as a table; `resolutions`: those of `leaderboard.ranked`; None: it is computed. `files`: paths of the CSV files
    of results. `contributed`: who has contributed which rows.
    """

    plots: dict[str, str] = field(default_factory=dict)
    verified: tuple[Verified, ...] = ()
    history: tuple[Entry, ...] = ()
    reported: tuple[Comparison, ...] = ()
    measured: pd.DataFrame | None = None
    resolutions: Mapping[tuple[str, str], leaderboard.Resolution] | None = None
    files: tuple[str, ...] = ()
    contributed: tuple[Contribution, ...] = ()


NOTHING = More()


def page(suite: str, description: str, board: pd.DataFrame, gains: pd.DataFrame, rows: pd.DataFrame, more: More = NOTHING) -> str:
    """index.html of `leaderboards/<suite>/`.

    Args:
        suite: name of the suite.
        description: one line about it.
        board: leaderboard.csv as a table. Missing columns of this and the next two count as empty.
        gains: tuned.csv as a table.
        rows: results.csv as a table, as it is or as `prepared` returns it.
        more: what else is shown.

    Returns:
        The HTML text.
    """
    rows = rows if "plain" in rows else prepared(rows)
    boards = tables.boards(board, rows, more.measured, more.verified, more.resolutions, more.contributed)
    pairs = sorted(set(zip(rows["dataset"], rows["architecture"], strict=True)))
    return rendered(
        "page.html",
        **CONSTANTS,
        suite=suite,
        description=description,
        boards=boards,
        columns=[shown.column for shown in board_columns.shown(board)],
        tracks=list(dict.fromkeys(b.track for b in boards)),
        tunings=list(dict.fromkeys(b.tuning for b in boards)),
        blocks=pairs,
        pairs=[" / ".join(pair) for pair in pairs],
        plots=_placed(more.plots, boards),
        gains=tables.gains(gains),
        warnings=tracks.warnings(rows),
        troubles=tables.troubles(rows),
        facts=about.facts(rows),
        recipes=about.recipes(rows),
        provenance=about.provenance(rows),
        commands=about.commands(suite, rows),
        verified=extras.verified_table(more.verified),
        history=more.history,
        reported=extras.reported_table(more.reported),
        files=more.files,
    )


def rendered(template: str, **values: Any) -> str:
    """A page of a template, with this package's style and script."""
    style, script = _template("page.css"), _template("page.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FunctionLoader(_template)
    )
    return environment.get_template(template).render(
        policy=POLICY.format(style=_hash(style), script=_hash(script)),
        # safe: files of this package, which hold no text of a user
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        **values,
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@dataclass(frozen=True)
class Plot:
    """A picture: its title without the track, and its path relative to the page."""

    title: str
    path: str


def _placed(plots: dict[str, str], boards: list[tables.Board]) -> dict[int | None, list[Plot]]:
    """Index of a board -> plots whose title contains its track and tuning; None -> all other plots."""
    names = {k: _slug(b.track if b.tuning == "default" else f"{b.track}, {b.tuning}") for k, b in enumerate(boards)}
    placed: dict[int | None, list[Plot]] = {None: [], **{k: [] for k in names}}
    for path, title in plots.items():
        of = [k for k, name in names.items() if name in _slug(title)]
        placed[max(of, key=lambda k: len(names[k])) if of else None].append(Plot(title.partition(": ")[0], urllib.parse.quote(path)))
    return placed


def _slug(title: str) -> str:
    return f"-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-"


def prepared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with all columns, texts without NaN, and track and method names (with ablation) as in the leaderboard."""
    table = rows.reindex(columns=list(USED))
    for name in TEXTS:
        places, values = pd.factorize(table[name])  # each different value once; -1 is a missing one
        if (places < 0).any() or not all(isinstance(value, str) for value in values):
            table[name] = pd.Series(np.array([*map(cells.words, values), ""], dtype=object)[places], table.index, dtype=object)
    table["finetune_epochs"] = table["finetune_epochs"].fillna(0).astype(int)
    known = {"", *tracks.ONE_SHOT}
    stages = [stage if stage in known else "" for stage in table["stage"]]
    table["track"] = tracks.names(table.assign(stage=stages))
    table["plain"] = table["method"]
    table["method"] = [tracks.label(m, a) for m, a in zip(table["plain"], table["ablation"], strict=True)]
    return table
