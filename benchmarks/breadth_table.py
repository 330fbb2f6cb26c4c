"""The results of `breadth.py` as tables in markdown.

    python benchmarks/breadth_table.py breadth.csv

The first one has a row for each model, the second one the reasons of what the harness refuses. SynFlow's are left out, because it refuses
most networks, and Torch-Pruning's, because they are exceptions from within it: they are in the column `outcome` of the file.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

STEPS = ("weight", "2:4", "channel", "spam", "torch-pruning", "torch-pruning heads")  # the other steps are criteria
NO_REASON = ("synflow", "torch-pruning", "torch-pruning heads")
SPARSITY, CLOSE = 0.5, 0.01  # a reached share this close to the requested one counts as reached
Row = dict[str, str]


def kind(row: Row) -> str:
    """works, refused, fails or slow."""
    return row["outcome"].partition(":")[0]


def cell(row: Row | None) -> str:
    """The outcome of a step in one word; of channels the share of the weights that is removed."""
    if row is None:
        return ""
    return f"{float(row['reached']):.1%}" if row["step"] == "channel" and row["reached"] else kind(row)


def criteria(rows: list[Row]) -> str:
    """The criteria that do not work on a model; those without a word refuse it."""
    return ", ".join(row["step"] + f" ({kind(row)})" * (kind(row) != "refused") for row in rows if kind(row) != "works")


def total(rows: list[Row]) -> str:
    """How many models work; for channels also how many reach the sparsity."""
    near = sum(row["step"] == "channel" and bool(row["reached"]) and abs(float(row["reached"]) - SPARSITY) <= CLOSE for row in rows)
    return f"{Counter(map(kind, rows))['works']} of {len(rows)}" + (f", {near} within {CLOSE:.0%}" if near else "")


def lines(rows: list[Row]) -> list[str]:
    """The lines of both tables."""
    names = sorted({row["step"] for row in rows} - set(STEPS))
    cells = {(row["model"], row["step"]): row for row in rows}
    places = {(row["module"], row["model"]): row["pixels"] for row in rows if row["pixels"]}
    made = [["module", "model", "pixels", *STEPS, "not by"], ["---", "---", "---:", *["---"] * len(STEPS), "---"]]
    for (module, model), pixels in sorted(places.items()):
        tried = [cells[model, name] for name in names if (model, name) in cells]
        made.append([module, model, pixels, *(cell(cells.get((model, step))) for step in STEPS), criteria(tried)])
    of = {step: [row for row in rows if row["step"] == step] for step in (*STEPS, *names)}
    made.append(["**works**", "", "", *(total(of[step]) for step in STEPS), ", ".join(f"{name} {total(of[name])}" for name in names)])
    refused = [row for row in rows if kind(row) in ("refused", "fails") and row["step"] not in NO_REASON]
    made += [[], ["model", "what", "reason"], ["---"] * 3]
    for model, reason in sorted({(row["model"], row["outcome"]) for row in refused}):
        same = [row["step"] for row in refused if (row["model"], row["outcome"]) == (model, reason)]
        made.append([model, ", ".join(same), reason.replace("|", "/")])
    return [f"| {' | '.join(line)} |" if line else "" for line in made]


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        print("\n".join(lines(list(csv.DictReader(file)))))
