"""Check every cell of a contributed results.csv before its rows are added to a leaderboard.

A row is refused if it violates the schema, belongs to another suite or protocol, has impossible counts, does not match the name of its
method, or occurs twice. Refusals contain the row number as a spreadsheet counts (the header is row 1) and the reason. The rows of a method
must cover all blocks (data set and architecture), sparsities and seeds of the suite. Rows that are already published are not added again.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import methods
from bench.planning.cells import hyperparameters_of
from bench.planning.jobs import dense_name, recipe_faults
from bench.publishing import row_comparison
from bench.publishing.board_folder import Board
from bench.publishing.noise import Noise
from bench.spec.errors import UserError
from bench.spec.row import COLUMNS, PROTOCOL_VERSION, RECALIBRATIONS, Row
from bench.spec.suite import Suite
from bench.storage.row_check import row_of
from methods import Stage

SHAPE = ("prunable_weights", "parameters", "flops")  # of the network: equal in all rows of a block


@dataclass
class Checked:
    """The content of a checked file: new rows, number of already published rows, refusals as (row number, reason)."""

    new: list[Row] = field(default_factory=list)
    repeated: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)


def check(path: Path, board: Board) -> Checked:
    """Check every row of a file.

    Args:
        path: a results.csv.
        board: the leaderboard that the rows are for.

    Raises:
        UserError: the file is not a results.csv.
    """
    checked = Checked()
    published = {row.identity: row for row in board.rows}
    seen: dict[tuple[Any, ...], int] = {}
    shapes = {(r.dataset, r.architecture): {n: getattr(r, n) for n in SHAPE} for r in board.rows if r.prunable_weights}
    numbers: dict[int, int] = {}
    repeated: list[tuple[int, row_comparison.Pair]] = []
    for number, record in _records(path):
        row, faults = _row(record)
        if row is not None and not faults:
            faults = [*_of_suite(row, board), *_exact(row, shapes.get((row.dataset, row.architecture), {}))]
            faults += [*_configured(row, board.suite), *recipe_faults(row, board.suite)]
            first = seen.setdefault(row.identity, number)
            if first != number:
                faults.append(f"has the same key (method, data set, sparsity, seed, ...) as row {first}")
        checked.refused += [(number, fault) for fault in faults]
        if faults or row is None:
            continue
        there = published.get(row.identity)
        if there is None:
            checked.new.append(row)
            numbers[id(row)] = number
        else:
            repeated.append((number, (there, row)))
    contradictions = list(_contradictions(repeated, board))
    checked.refused += contradictions
    checked.repeated = len(repeated) - len(contradictions)
    if not checked.refused:
        checked.refused += _gaps(checked.new, numbers, board)
    checked.refused.sort(key=lambda fault: fault[0])
    return checked


def _gaps(new: list[Row], numbers: dict[int, int], board: Board) -> Iterator[tuple[int, str]]:
    """(row number, what is missing) of each new method that is incomplete. `numbers`: id of a row -> row number."""
    complete = {row.identity: row for row in (*board.rows, *new)}.values()
    first = {(row.method, row.tuning, row.ablation): numbers[id(row)] for row in reversed(new)}
    yield from ((first[key], reason) for key, reason in incomplete(complete, board.suite) if key in first)


def _contradictions(repeated: list[tuple[int, row_comparison.Pair]], board: Board) -> Iterator[tuple[int, str]]:
    """(row number, reason) for rows that differ from the published row with the same key, compared as `verify` does."""
    verdicts = row_comparison.compare([pair for _, pair in repeated], Noise(board.rows))
    for (number, pair), verdict in zip(repeated, verdicts, strict=True):
        different = [*verdict.differences, *_configuration(*pair)]
        if different:
            yield number, f"differs from the published row: {'; '.join(different)}"


def incomplete(rows: Iterable[Row], suite: Suite) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Find methods without rows for some block, sparsity, fine-tuning epochs or seed of the suite.

    Args:
        rows: all rows of a leaderboard.
        suite: its suite.

    Yields:
        ((method, tuning, ablation), what is missing), one per incomplete method.
    """
    found: dict[tuple[str, str, str], dict[tuple[Any, ...], set[int]]] = {}
    pruned: set[tuple[str, str, str]] = set()
    for row in rows:
        if row.criterion:
            pruned.add((row.method, row.tuning, row.ablation))
        seeds = found.setdefault((row.method, row.tuning, row.ablation), {})
        seeds.setdefault((row.dataset, row.architecture, row.sparsity, row.finetune_epochs), set()).add(row.seed)
    # Blocks without any row are not required: the architecture does not support the data set.
    blocks = {cell[:2] for cells in found.values() for cell in cells}
    for key, cells in found.items():
        if key not in pruned:
            own = {cell[:2] for cell in cells}  # a dense network is only required where a method uses it
            wanted = {(*block, 0.0, f) for block in own for f in suite.finetune_epochs}
        else:
            wanted = {(*block, s, f) for block in blocks for s in suite.sparsities for f in suite.finetune_epochs}
        for cell in sorted(wanted):
            missing = sorted(set(suite.seeds) - cells.get(cell, set()))
            if missing:
                dataset, architecture, sparsity, finetuned = cell
                where = f"{dataset}/{architecture} at sparsity {sparsity:g} with {finetuned} epochs of fine-tuning"
                label = " ".join(filter(None, (key[0], key[1] * (key[1] != "default"), key[2] * (key[2] != "none"))))
                yield key, f"'{label}' has no row for {where}, seeds {', '.join(map(str, missing))}"
                break


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of each line below the header. UserError if the file is not a CSV with the columns of results.csv."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not a CSV file: {error}") from None
    header = lines[0] if lines else []
    if tuple(header) != COLUMNS:
        raise UserError(f"'{path}' does not have the columns of results.csv: {_header_fault(header)}")
    if len(lines) == 1:
        raise UserError(f"'{path}' has no rows")
    yield from enumerate(lines[1:], 2)


def _header_fault(header: list[str]) -> str:
    missing, unknown = [c for c in COLUMNS if c not in header], [c for c in header if c not in COLUMNS]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(map(repr, unknown))}"] * bool(unknown)
        return "; ".join(parts)
    place, name = next((k, c) for k, c in enumerate(header) if k >= len(COLUMNS) or c != COLUMNS[k])
    return f"column {place + 1} is '{name}'" + (f", expected '{COLUMNS[place]}'" if place < len(COLUMNS) else "")


def _row(cells: list[str]) -> tuple[Row | None, list[str]]:
    """The row of these cells, or None and the errors."""
    if len(cells) != len(COLUMNS):
        return None, [f"{len(cells)} cells, expected {len(COLUMNS)}"]
    return row_of(dict(zip(COLUMNS, cells, strict=True)))


def _of_suite(row: Row, board: Board) -> Iterator[str]:
    """Values of a row that are not in the suite, or a different protocol."""
    suite = board.suite
    if row.suite != suite.name:
        yield f"suite '{row.suite}', this leaderboard has suite '{suite.name}'"
    if row.protocol != PROTOCOL_VERSION:
        yield f"protocol {row.protocol}, this release has protocol {PROTOCOL_VERSION}"
    if row.architecture not in {a for b in suite.blocks if b.dataset == row.dataset for a in b.architectures}:
        yield f"the suite does not contain {row.dataset}/{row.architecture}"
    if row.sparsity not in (suite.sparsities if row.criterion else (0.0,)):
        yield f"sparsity {row.sparsity!r} is not one of {', '.join(map(str, suite.sparsities if row.criterion else (0.0,)))}"
    if row.seed not in suite.seeds:
        yield f"seed {row.seed} is not one of {', '.join(map(str, suite.seeds))}"
    if row.finetune_epochs not in suite.finetune_epochs:
        yield f"finetune_epochs {row.finetune_epochs} is not one of {', '.join(map(str, suite.finetune_epochs))}"
    if row.epochs < suite.epochs or (row.epochs > suite.epochs and row.ablation == "none" and row.stage != Stage.DURING):
        yield f"epochs {row.epochs}, but the suite has {suite.epochs}"
    said = {
        "granularity": suite.granularity, "match": suite.match, "calibration_samples": suite.calibration,
        "recalibration": RECALIBRATIONS[suite.recalibrate_batchnorm],
    }  # fmt: skip
    for name, own in said.items():
        if getattr(row, name) != own:
            yield f"{name} '{getattr(row, name)}', this leaderboard has '{own}'"
    there = next((r for r in board.rows if (r.dataset, r.architecture) == (row.dataset, row.architecture)), row)
    started = _start(suite, row.architecture, there)
    if not row.initial_weights.startswith(started):
        yield f"initial_weights '{row.initial_weights}', this leaderboard has '{started}'"


def _start(suite: Suite, architecture: str, published: Row) -> str:
    """How the column `initial_weights` must begin; the whole column if a row of the same network is published."""
    protocol = suite.protocol(architecture)
    if protocol.weights is None:
        return "pretrained" if protocol.pretrained else "random"
    return published.initial_weights if published.initial_weights.startswith("sha256:") else "sha256:"


def _exact(row: Row, shape: dict[str, int]) -> Iterator[str]:
    """Impossible measurements: counts, sparsity, and columns that do not fit to the status."""
    if row.status in ("failed", "unsupported"):
        if not row.error:
            yield f"status is '{row.status}' but the column `error` is empty"
        if row.accuracy is not None:
            yield f"status is '{row.status}' but the column `accuracy` is not empty"
        return
    needed = [n for n in ("accuracy", "nll", "brier", "ece", "sparsity_reached", "kept_weights", *SHAPE) if getattr(row, n) is None]
    if needed:
        yield f"status is '{row.status}' but these columns are empty: {', '.join(needed)}"
        return
    assert row.prunable_weights is not None
    assert row.kept_weights is not None
    assert row.sparsity_reached is not None
    for name, value in shape.items():
        if getattr(row, name) != value:
            yield f"{name} is {getattr(row, name)}, but this network has {value}"
    if row.granularity == "weight":
        wanted = row.prunable_weights - methods.count_masked(row.sparsity, row.prunable_weights)
        if row.kept_weights != wanted:
            yield (f"kept_weights is {row.kept_weights}, but sparsity {row.sparsity!r} requires exactly {wanted} of {row.prunable_weights}")
    if abs(row.sparsity_reached - (1 - row.kept_weights / row.prunable_weights)) > 1e-12:
        yield f"sparsity_reached {row.sparsity_reached!r} is not 1 - kept_weights / prunable_weights"
    for part, whole in (("parameters_kept", "parameters"), ("flops_kept", "flops"), ("accuracy", "top5")):
        a, b = getattr(row, part), getattr(row, whole)
        if a is not None and b is not None and a > b:
            yield f"{part} {a} is larger than {whole} {b}"


def _configured(row: Row, suite: Suite) -> Iterator[str]:
    """Differences between the name of the method and the row's criterion, training, stage, schedule and hyperparameters."""
    try:
        said = json.loads(row.hyperparameters)
        training, criterion = said["training"], said["criterion"] if row.criterion else {}
        scale = said["finetuning"]["lr_scale"] if row.finetune_epochs else None
        if not (isinstance(training, dict) and isinstance(criterion, dict)):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        yield "hyperparameters: not a JSON object with the values of training, criterion and fine-tuning"
        return
    if scale is not None and scale != suite.finetune_lr_scale and row.tuning == "default":
        yield f"hyperparameters: lr_scale {scale!r} of fine-tuning, but the suite has {suite.finetune_lr_scale!r}"
    try:
        yield from _dense(row, training) if not row.criterion else _named(row, said, training, criterion)
    except (ValueError, TypeError) as error:
        yield str(error) + " (a method of your own: --plugin FILE)" * isinstance(error, methods.UnknownName)


def _dense(row: Row, training: dict[str, Any]) -> Iterator[str]:
    """A wrong method name of a dense network."""
    name = dense_name(row.training, hyperparameters_of(methods.make("trainings", row.training, training)))
    if row.method != name:
        yield f"method '{row.method}' has no criterion; the dense network of this training must be called '{name}'"


def _named(row: Row, said: dict[str, Any], training: dict[str, Any], criterion: dict[str, Any]) -> Iterator[str]:
    """Differences between a pruned row and the registered method of this name."""
    method = methods.get(row.method)
    named = {"method": method.name, "criterion": method.criterion, "training": method.training, "stage": str(method.stage)}
    wrong = [f"{n} '{getattr(row, n)}', the method '{row.method}' has '{v}'" for n, v in named.items() if getattr(row, n) != v]
    yield from wrong
    if wrong:
        return
    schedule = None if method.schedule is None else json.loads(json.dumps(method.schedule.as_dict()))
    if said.get("schedule") != schedule:
        yield f"hyperparameters: `schedule` is not that of '{row.method}'"
    given = {"training": training, "criterion": criterion}
    made = {
        "training": method.make_training(**training),
        "criterion": method.make_criterion(**criterion),
    }  # raises for values outside their ranges, or that differ from those in the name
    if row.tuning == "tuned":
        if not isinstance(said.get("tuning"), dict):
            yield "hyperparameters: tuned row without the entry `tuning`"
        return
    defaults = {"training": method.make_training(), "criterion": method.make_criterion()}
    for kind, configuration in made.items():
        values = hyperparameters_of(defaults[kind])
        changed = sorted(k for k, v in hyperparameters_of(configuration).items() if k not in given[kind] or v != values[k])
        if changed:
            yield f"hyperparameters: {', '.join(changed)} of the {kind} differ from the defaults of '{row.method}'"


def _configuration(there: Row, row: Row) -> list[str]:
    """`hyperparameters` if it differs from the published row, otherwise nothing."""
    same = json.loads(there.hyperparameters) == json.loads(row.hyperparameters)
    return [] if same else ["hyperparameters"]
