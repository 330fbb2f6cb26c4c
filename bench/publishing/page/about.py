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
    """Counts at the top of the page: (number, unit). Rows of dense networks do not count, as in the list of all leaderboards."""
    pruned = rows[rows["track"] != ""]
    blocks = len(rows[["dataset", "architecture"]].drop_duplicates())
    counts = [
        (pruned["method"].nunique(), "method", "methods"), (blocks, "block", "blocks"), (rows["seed"].nunique(), "seed", "seeds"),
        (pruned["sparsity"].nunique(), "sparsity", "sparsities"), (len(pruned), "row", "rows"),
    ]  # fmt: skip
    return [(f"{n:,}", one if n == 1 else several) for n, one, several in counts]


def recipes(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Each method with its distinct hyperparameters and the blocks where they were used."""
    found = []
    for method, own in sorted(rows.groupby("plain"), key=lambda one: (not any(one[1]["criterion"]), one[0])):  # the dense ones last
        settings = _settings(own)
        parts = [f"{name} {value}" for name in ("criterion", "training") for value in sorted(set(own[name]) - {""})]
        parts += [STAGES.get(stage, stage) for stage in sorted(set(own["stage"]))]
        first = own.iloc[0]
        parts_of = str(method), str(first["criterion"]), str(first["training"])
        found.append({
            "method": method, "is": " · ".join(filter(None, parts)), "settings": settings[:MOST_SETTINGS],
            "left_out": len(settings[MOST_SETTINGS:]), "papers": references.papers(*parts_of), "docs": references.docs(*parts_of),
        })  # fmt: skip
    return found


def _settings(own: pd.DataFrame) -> list[dict[str, Any]]:
    """The distinct hyperparameters of a method, defaults first, then those of most blocks.

    One-shot rows have no hyperparameters of fine-tuning. They are not told apart from fine-tuned rows of the same block that agree in all
    others. What a search cost and gained is in the page's table of tuning.
    """
    places: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    blocks = own.groupby(["tuning", "dataset", "architecture"], sort=True)
    for (tuning, dataset, architecture), part in blocks:
        texts = map(cells.words, part["hyperparameters"].unique())
        said = dict.fromkeys(tuple(pair for pair in _pairs(text) if not pair[0].startswith("tuning.")) for text in texts)
        for pairs in said:
            if not any(set(pairs) < set(other) for other in said):
                places.setdefault((str(tuning), pairs), []).append(f"{dataset} / {architecture}")
    every = len(own[["dataset", "architecture"]].drop_duplicates())
    order = sorted(places.items(), key=lambda one: (one[0][0], -len(one[1]), one[1], one[0][1]))
    return [
        {"tuning": tuning, "where": "every block" if len(where) == every > 1 else ", ".join(where), "pairs": list(pairs)}
        for (tuning, pairs), where in order
    ]


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
        if isinstance(value, dict):
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
