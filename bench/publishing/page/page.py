"""One static HTML page for a published leaderboard. It contains everything and fetches nothing; the same input gives the same bytes.

Names, errors and hyperparameters come from CSV files of other people and may be hostile. Jinja escapes every text. A content security
policy with hashes allows only this page's own script and style. Plots are embedded as images, so scripts in them never run and their
ids cannot clash.
"""

import base64
import hashlib
import json
import re
import shlex
import urllib.parse
from importlib import resources
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pandas as pd

from bench.publishing.page import board_columns, cells, tables
from bench.ranking import leaderboard, tracks
from bench.ranking.columns import BASELINE
from bench.spec.row import COLLAPSED, DENSE

TEMPLATES = resources.files("bench.publishing.page") / "templates"
TEXTS = (
    "dataset", "architecture", "granularity", "match", "method", "criterion", "training", "stage", "tuning", "ablation", "status", "error",
)  # fmt: skip
USED = tuple(dict.fromkeys((
    *TEXTS, *tracks.DECIDING, "sparsity", "seed", "accuracy", "dense_accuracy", "hyperparameters", "protocol", "version", "commit", "torch",
    "device",
)))  # fmt: skip
STAGES = {stage: track.removeprefix("one-shot ") for stage, track in tracks.ONE_SHOT.items()}
PICTURE = re.compile(rb"data:image/svg\+xml,([^\"]*)")  # an embedded plot
POLICY = "default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:; base-uri 'none'; form-action 'none'"


def page(
    suite: str, description: str, board: pd.DataFrame, gains: pd.DataFrame, rows: pd.DataFrame, plots: dict[str, str],
) -> str:  # fmt: skip
    """index.html of `leaderboards/<suite>/`.

    Args:
        suite: name of the suite.
        description: one line about it.
        board: leaderboard.csv as a table. Missing columns of this and the next two count as empty.
        gains: tuned.csv as a table.
        rows: results.csv as a table.
        plots: title -> SVG. A plot is shown under the track (and ", tuned") that its title contains.

    Returns:
        The HTML text.
    """
    rows = _prepared(rows)
    tried = tables.gains(gains)
    boards = tables.boards(board, rows)
    style, script = _template("page.css"), _template("page.js")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_template("page.html")).render(
        suite=suite,
        description=description,
        policy=POLICY.format(style=_hash(style), script=_hash(script)),
        # safe: files of this package, which hold no text of a user
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        boards=boards,
        columns=[shown.column for shown in board_columns.shown(board)],
        tracks=list(dict.fromkeys(b.track for b in boards)),
        tunings=list(dict.fromkeys(b.tuning for b in boards)),
        plots=_placed(plots, boards),
        gains=tried,
        warnings=tracks.warnings(rows),
        interval=board_columns.INTERVAL,
        collapsed=COLLAPSED,
        coarsest=leaderboard.COARSEST,
        troubles=tables.troubles(rows),
        facts=_facts(rows),
        recipes=_recipes(rows),
        provenance=_provenance(rows),
        commands=_commands(suite, rows, gains),
        baseline=BASELINE,
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _placed(plots: dict[str, str], boards: list[tables.Board]) -> dict[int | None, list[tuple[str, str]]]:
    """Index of a board -> plots whose title contains its track and tuning; None -> all other plots."""
    names = {k: _slug(b.track if b.tuning == "default" else f"{b.track}, {b.tuning}") for k, b in enumerate(boards)}
    placed: dict[int | None, list[tuple[str, str]]] = {None: [], **{k: [] for k in names}}
    for title, svg in plots.items():
        of = [k for k, name in names.items() if name in _slug(title)]
        placed[max(of, key=lambda k: len(names[k])) if of else None].append((title.partition(": ")[0], _image(svg)))
    return placed


def _slug(title: str) -> str:
    return f"-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-"


def _image(svg: str) -> str:
    """The SVG as a data URL. It is percent-encoded because git compresses this far better than base64."""
    return "data:image/svg+xml," + urllib.parse.quote(" ".join(svg.split("\n")), safe=" /:=;,.()-!*@?+$[]{}|^~")


def _prepared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with all columns, texts without NaN, and track and method names (with ablation) as in the leaderboard."""
    table = rows.reindex(columns=list(USED))
    for name in TEXTS:
        places, values = pd.factorize(table[name])  # each different value once; -1 is a missing one
        table[name] = pd.Series(np.array([*map(cells.words, values), ""], dtype=object)[places], table.index, dtype=object)
    table["finetune_epochs"] = table["finetune_epochs"].fillna(0).astype(int)
    known = {"", *tracks.ONE_SHOT}
    stages = [stage if stage in known else "" for stage in table["stage"]]
    table["track"] = tracks.names(table.assign(stage=stages))
    table["plain"] = table["method"]
    table["method"] = [m if a in ("none", "") else f"{m} ({a})" for m, a in zip(table["plain"], table["ablation"], strict=True)]
    return table


def _facts(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Counts at the top of the page: (number, unit)."""
    methods = rows.loc[rows["track"] != "", "method"].nunique()
    blocks = len(rows[["dataset", "architecture"]].drop_duplicates())
    counts = [(methods, "method"), (blocks, "block"), (rows["seed"].nunique(), "seed")]
    pruned = rows.loc[rows["track"] != "", "sparsity"].nunique()
    named = [(f"{n:,}", what if n == 1 else what + "s") for n, what in [*counts, (len(rows), "row")]]
    return [*named[:3], (f"{pruned}", "sparsity" if pruned == 1 else "sparsities"), named[3]]


def _recipes(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Each method with its distinct hyperparameters and the blocks where they were used."""
    recipes = []
    for method, own in sorted(rows.groupby("plain"), key=lambda one: (not any(one[1]["criterion"]), one[0])):  # the dense ones last
        settings = []
        for (tuning, text), part in own.groupby(["tuning", own["hyperparameters"].map(cells.words)], sort=True):
            blocks = sorted({f"{d} / {a}" for d, a in zip(part["dataset"], part["architecture"], strict=True)})
            everywhere = len(blocks) == len(own[["dataset", "architecture"]].drop_duplicates())
            where = "every block" if everywhere and len(blocks) > 1 else ", ".join(blocks)
            settings.append({"tuning": tuning, "where": where, "pairs": _pairs(text)})
        parts = [f"{name} {value}" for name in ("criterion", "training") for value in sorted(set(own[name]) - {""})]
        parts += [STAGES.get(stage, stage) for stage in sorted(set(own["stage"]))]
        recipes.append({"method": method, "is": " · ".join(filter(None, parts)), "settings": settings})
    return recipes


def _pairs(text: str) -> list[tuple[str, str]]:
    """Hyperparameters as (dotted name, value); one pair with the text itself if it is not a JSON object."""
    try:
        said = json.loads(text or "{}")
    except ValueError:
        return [("", text)]
    return _flat(said) if isinstance(said, dict) else [("", text)]


def _flat(said: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in said.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return pairs


def _provenance(rows: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
    """Versions, devices and settings of the rows: (name, [(value, number of rows)])."""
    named = {
        "Protocol": "protocol", "razorbench": "version", "Commit": "commit", "torch": "torch", "Device": "device", "Seeds": "seed",
        "Sparsities": "sparsity", "Data sets": "dataset", "Architectures": "architecture", "Granularity": "granularity",
        "Match": "match", "Epochs": "epochs", "Fine-tuning epochs": "finetune_epochs",
    }  # fmt: skip
    found = []
    for title, name in named.items():
        values = rows[name].dropna()
        counts = values[values.astype(str) != ""].value_counts(sort=False).sort_index()
        if len(counts):
            found.append((title, [(_plain(value), f"{n:,}") for value, n in counts.items()]))
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else cells.exact(value)


def _commands(suite: str, rows: pd.DataFrame, gains: pd.DataFrame) -> list[tuple[str, str]]:
    """(purpose, command line); names are quoted for the shell, because they may contain brackets, or hostile text."""
    pruned = rows[rows["track"] != ""]
    if pruned.empty:
        return []

    def several(name: str) -> str:
        return ",".join(_plain(value) for value in sorted(pruned[name].dropna().unique()))

    dense = rows[rows["plain"] == DENSE]
    epochs = (dense if len(dense) else pruned)["epochs"].dropna()
    options = {
        "suite": suite, "methods": ",".join(dict.fromkeys(pruned["plain"])), "datasets": several("dataset"),
        "architectures": several("architecture"), "sparsities": several("sparsity"), "seeds": several("seed"),
        "epochs": _plain(epochs.min()) if len(epochs) else "", "finetune-epochs": several("finetune_epochs"),
        "trials": _plain(gains["trials"].max()) if "trials" in gains and len(gains) else "",
        "granularity": several("granularity") if several("granularity") != "weight" else "",
        "match": several("match") if several("match") != "weights" else "",
        "ablate": ",".join(sorted(set(pruned["ablation"]) - {"none", ""})), "output": "out",
    }  # fmt: skip
    said = [f"--{name} {shlex.quote(value)}" for name, value in options.items() if value]
    return [
        ("Run everything again", "python -m bench run " + " \\\n    ".join(["", *said]).lstrip()),
        ("Recompute a random sample of these rows and compare", f"python -m bench verify leaderboards/{shlex.quote(suite)} --sample 20"),
    ]
