"""What the page says about a leaderboard as a whole: counts, hyperparameters of methods, provenance, commands."""

import json
import shlex
from typing import Any

import pandas as pd

from bench.publishing.page import cells, references
from bench.ranking import tracks

STAGES = {stage: track.removeprefix("one-shot ") for stage, track in tracks.ONE_SHOT.items()}
MOST_SETTINGS = 60  # of one method


def facts(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Counts at the top of the page: (number, unit)."""
    methods = rows.loc[rows["track"] != "", "method"].nunique()
    blocks = len(rows[["dataset", "architecture"]].drop_duplicates())
    counts = [(methods, "method"), (blocks, "block"), (rows["seed"].nunique(), "seed")]
    pruned = rows.loc[rows["track"] != "", "sparsity"].nunique()
    named = [(f"{n:,}", what if n == 1 else what + "s") for n, what in [*counts, (len(rows), "row")]]
    return [*named[:3], (f"{pruned}", "sparsity" if pruned == 1 else "sparsities"), named[3]]


def recipes(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Each method with its distinct hyperparameters and the blocks where they were used."""
    found = []
    for method, own in sorted(rows.groupby("plain"), key=lambda one: (not any(one[1]["criterion"]), one[0])):  # the dense ones last
        settings = []
        for (tuning, text), part in own.groupby(["tuning", own["hyperparameters"].map(cells.words)], sort=True):
            blocks = sorted({f"{d} / {a}" for d, a in zip(part["dataset"], part["architecture"], strict=True)})
            everywhere = len(blocks) == len(own[["dataset", "architecture"]].drop_duplicates())
            where = "every block" if everywhere and len(blocks) > 1 else ", ".join(blocks)
            settings.append({"tuning": tuning, "where": where, "pairs": _pairs(text)})
        parts = [f"{name} {value}" for name in ("criterion", "training") for value in sorted(set(own[name]) - {""})]
        parts += [STAGES.get(stage, stage) for stage in sorted(set(own["stage"]))]
        first = own.iloc[0]
        parts_of = str(method), str(first["criterion"]), str(first["training"])
        found.append({
            "method": method, "is": " · ".join(filter(None, parts)), "settings": settings[:MOST_SETTINGS],
            "left_out": len(settings[MOST_SETTINGS:]), "papers": references.papers(*parts_of), "docs": references.docs(*parts_of),
        })  # fmt: skip
    return found


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


def provenance(rows: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
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


def commands(suite: str, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(purpose, command line); names are quoted for the shell, because they may contain brackets, or hostile text.

    Blocks, sparsities, budgets and so on are read from suite.toml: no option can give the values of single blocks. Contributed methods
    and ablations are not in it.
    """
    pruned, folder = rows[rows["track"] != ""], f"leaderboards/{shlex.quote(suite)}"
    if pruned.empty:
        return []
    options = {
        "suite": f"{folder}/suite.toml", "methods": shlex.quote(",".join(dict.fromkeys(pruned["plain"]))),
        "ablate": shlex.quote(",".join(sorted(set(pruned["ablation"]) - {"none", ""}))), "output": "out",
    }  # fmt: skip
    said = [f"--{name} {value}" for name, value in options.items() if value not in ("", "''")]
    return [
        ("Run everything again", "python -m bench run " + " \\\n    ".join(["", *said]).lstrip()),
        ("Recompute a random sample of these rows and compare", f"python -m bench verify {folder} --sample 20"),
    ]
