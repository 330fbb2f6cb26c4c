"""`choose`: the Pareto front of accuracy against size, FLOPs and latency, the best method under a budget, and how to export it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from bench.cli.tables import Shown, print_table, say
from bench.publishing.page import cells
from bench.ranking import tracks, tradeoff
from bench.ranking.tradeoff import COSTS, DROP, Choice
from bench.spec.errors import UserError, unknown
from bench.spec.row import Row

HEADINGS = {"parameters": "size", "flops": "FLOPs", "latency": "latency"}
WORDS = {"parameters": "parameters", "flops": "FLOPs", "latency": "latency", DROP: "loss of accuracy"}


def budget_of(text: str) -> dict[str, float]:
    """The budget in the option --at-most, e.g. `flops=0.5,drop=0.01`.

    Raises:
        UserError: a part is not NAME=FRACTION with a known name and a fraction in [0, 1].
    """
    budget = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name not in WORDS:
            raise unknown("--at-most", name, WORDS)
        try:
            budget[name] = float(number)
        except ValueError:
            raise UserError(f"--at-most: '{part}' must be {name}=FRACTION, e.g. {name}=0.5") from None
        if not equals or not 0 <= budget[name] <= 1:
            raise UserError(f"--at-most: {name} is a fraction of the dense network's, in [0, 1], got {number}")
    return budget


def check_by(by: str) -> None:
    """Raise UserError if `by` is neither empty nor a cost."""
    if by and by not in COSTS:
        raise unknown("--smallest", by, COSTS)


def show(
    console: Console, rows: list[Row], path: Path | None, *, budget: Mapping[str, float] | None = None, by: str = "", every: bool = False
) -> None:  # fmt: skip
    """Print the front of each track, data set and architecture; with a budget or a cost to minimise also the best line and its export.

    Args:
        console: where to.
        rows: all results, those of the dense networks included.
        path: the folder or file of the rows, for the commands in the output; None if they are not in a file.
        budget: see `bench.ranking.tradeoff.choose`.
        by: see there.
        every: whether lines that are on no front are shown too.
    """
    table = tradeoff.tradeoff(rows)
    if table.empty:
        raise UserError("there are no rows of pruned networks to choose from")
    for key, lines in table.groupby(tradeoff.GROUP, sort=False):
        shown = lines if every else lines[lines["front"] != ""]
        if shown.empty:
            say(console, f"{_titled(key)}: all rows failed, so there is nothing to compare")
            continue
        of = "" if every else f": the Pareto front, {len(shown)} of {len(lines)} networks"
        print_table(console, f"{_titled(key)}{of}", _columns(shown))
    if not budget and not by:
        where = "DIR" if path is None else str(path)
        write = "write the results with --output DIR, then: " if path is None else ""
        say(console, f"Choose under a budget: {write}python -m bench choose {shlex.quote(where)} --at-most flops=0.5")
        return
    for choice in tradeoff.choose(rows, budget or {}, by):
        _show_choice(console, choice, rows, path, budget or {}, by)


def _titled(key: tuple[Any, ...]) -> str:
    track, tuning, dataset, architecture = map(str, key)
    return f"{track}{'' if tuning == 'default' else f', {tuning}'} · {dataset}/{architecture}"


def _columns(lines: pd.DataFrame) -> list[Shown]:
    def of(name: str, form: str) -> list[str]:
        return [cells.MISSING if cells.missing(value) else form.format(value) for value in lines[name]]

    spread = [
        a + ("" if s == cells.MISSING else f" ± {s}") for a, s in zip(of("accuracy", "{:.2%}"), of("accuracy_std", "{:.2%}"), strict=True)
    ]
    costs = [Shown(f"{HEADINGS[c]}\n/dense", of(c, "{:.1%}")) for c in COSTS if lines[c].notna().any()]
    failed = [Shown("failed", of("failed", "{:.0f}"))] * bool(lines["failed"].any())
    front = [", ".join(HEADINGS[c] for c in filter(None, said.split(","))) for said in lines["front"]]
    return [
        Shown("method", [str(m) for m in lines["method"]], name=True), Shown("sparsity", of("sparsity", "{:.10g}")),
        Shown("accuracy\n± std over seeds", spread), Shown("lost", of("drop", "{:.2%}"), rank=1), *costs, *failed,
        Shown("best for its", front, rank=2),
    ]  # fmt: skip


def _show_choice(
    console: Console, choice: Choice, rows: list[Row], path: Path | None, budget: Mapping[str, float], by: str
) -> None:  # fmt: skip
    within = " and ".join(f"{WORDS[name]} of at most {100 * most:g} %" for name, most in budget.items())
    aim = f"fewest {WORDS[by]}" if by in ("parameters", "flops") else f"lowest {by}" if by else "highest accuracy"
    asked = aim + (f" with {within}" if within else "")
    say(console, f"{_titled(choice.group)}: {asked}")
    best = choice.best
    if best is None:
        say(console, "  no network meets this")
        return
    left = ", ".join(f"{100 * best[c]:.1f} % of the {WORDS[c]}" for c in COSTS if not cells.missing(best[c]))
    dense = best["accuracy"] + best["drop"]
    say(console, f"  {best['method']} at sparsity {best['sparsity']:.10g}: accuracy {best['accuracy']:.2%} (dense {dense:.2%}), {left}")
    if choice.rivals:
        say(console, f"  not significantly different in accuracy over {best['seeds']:.0f} seeds: {', '.join(choice.rivals)}")
    elif not choice.tested:
        say(console, "  differences to other methods cannot be tested: more seeds and methods are needed")
    say(console, f"  export it: {shlex.join(_export(choice, rows, path))}")


def _settings(row: Row) -> list[str]:
    """The options that say what suite.toml would say, as far as a row knows it. `FILE` stands for weights, of which it knows the hash."""
    said = [part for name in ("granularity", "match", "epochs") for part in (f"--{name}", str(getattr(row, name)))]
    said += ["--calibration", str(row.calibration_samples)] * (row.calibration_samples is not None and not row.epochs)
    said += ["--recalibrate-batchnorm"] * (row.recalibration == "batchnorm")
    said += ["--pretrained"] * (row.initial_weights == "pretrained")
    return said + ["--weights", "FILE"] * row.initial_weights.startswith("sha256:")


def _export(choice: Choice, rows: list[Row], path: Path | None) -> list[str]:
    """The command that writes the chosen network."""
    best = choice.best
    assert best is not None
    folder = path if path is None or path.is_dir() else path.parent
    suite = str(folder / "suite.toml") if folder is not None and (folder / "suite.toml").is_file() else rows[0].suite
    track, tuning, dataset, architecture = choice.group
    wanted = (best["method"], dataset, architecture, best["sparsity"], tuning, track)
    row = next(r for r in rows if (r.method, r.dataset, r.architecture, r.sparsity, r.tuning, tracks.of_row(r)) == wanted)
    command = ["python", "-m", "bench", "export", "--suite", suite, "--method", str(best["method"])]
    command += ["--sparsity", f"{best['sparsity']:.10g}", "--dataset", dataset, "--architecture", architecture]
    command += ["--finetune-epochs", str(row.finetune_epochs)]
    if suite == row.suite:
        command += _settings(row)
    return command + ["--tuned", str(path)] * (tuning == "tuned")
