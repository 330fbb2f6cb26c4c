"""Rules for all rows of a leaderboard together: rows that its suite requires, and values that several rows must share.

`publish` and `merge` apply them before they write, `verify` to what is published. Nothing is trained.
"""

import functools
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from bench.publishing.row_comparison import MEASURED, WHERE, same_environment
from bench.publishing.row_rules import SHAPE
from bench.spec.row import DECLARED, KEY, Row
from bench.spec.setting import Setting, decoded
from bench.spec.suite import Suite
from methods import Stage

Key = tuple[str, str, str]  # method, tuning, ablation
Cell = tuple[Any, ...]  # the columns `CELL` of a row
Cells = Mapping[Cell, list[Row]]
CONTROLS = ("random", "magnitude", "magnitude_layer")  # protocol, rule 8
CONTROLS_AT_INIT = ("random_init",)
LEAST_SEEDS = 3  # protocol, rule 9
OLDEST = 2  # columns up to this schema are in every row
WITHIN = ("sparsity", "seed", "epochs", "recalibration")  # the key columns in which rows of a cell differ
CELL = ("dataset", "architecture", *(name for name in KEY if name not in (*WITHIN, "dataset", "architecture")))
COPIED = {"dense_accuracy": "accuracy", "dense_nll": "nll", "dense_training_flops": "training_flops"}  # from the row of the dense network

_cell, _within, _shape, _hyperparameters = attrgetter(*CELL), attrgetter(*WITHIN), attrgetter(*SHAPE), attrgetter("hyperparameters")
_dense_of = attrgetter("dataset", "architecture", "seed", "finetune_epochs", "training", "recalibration")
_said, _own = attrgetter(*WHERE, *COPIED), attrgetter(*WHERE, *COPIED.values())


def key_of(row: Row) -> Key:
    """Method, tuning and ablation of a row."""
    return row.method, row.tuning, row.ablation


def label_of(key: Key) -> str:
    """The name of a method, with its tuning and ablation if it has any."""
    return " ".join(filter(None, (key[0], key[1] * (key[1] != "default"), key[2] * (key[2] != "none"))))


def missing_controls(suite: Suite, rows: Iterable[tuple[str, str]]) -> list[str]:
    """The controls that a leaderboard needs, and does not have.

    Args:
        suite: its suite.
        rows: (method, stage) of its rows.
    """
    found = set(rows)
    names, stages = {name for name, _ in found}, {stage for _, stage in found}
    blocks = [(block.dataset, name) for block in suite.blocks for name in block.architectures]
    # adamw refuses the training of the plain controls, which has weight decay in the loss.
    training = "@decoupled" if any(suite.protocol(*block).optimizer == "adamw" for block in blocks) else ""
    wanted = [name + training for name in CONTROLS + (CONTROLS_AT_INIT if Stage.INIT in stages else ())]
    return [name for name in wanted if name not in names]


def incomplete(rows: Iterable[Row], suite: Suite) -> Iterator[tuple[Key, str]]:
    """Find methods without rows for some block, sparsity, fine-tuning epochs or seed of the suite.

    Args:
        rows: all rows of a leaderboard.
        suite: its suite.

    Yields:
        ((method, tuning, ablation), what is missing), one per incomplete method.
    """
    found: dict[Key, dict[tuple[Any, ...], set[int]]] = {}
    stages: dict[Key, str] = {}  # of methods that prune
    for row in rows:
        if row.criterion:
            stages[key_of(row)] = row.stage
        seeds = found.setdefault(key_of(row), {})
        seeds.setdefault((row.dataset, row.architecture, row.sparsity, row.finetune_epochs), set()).add(row.seed)
    # Blocks without any row are not required: the architecture does not support the data set.
    blocks = {cell[:2] for cells in found.values() for cell in cells}
    for key, cells in found.items():
        if key not in stages:
            own = {cell[:2] for cell in cells}  # a dense network is only required where a method uses it
            wanted = {(*block, 0.0, f) for block in own for f in suite.finetune_epochs}
        else:
            sparsities, finetunings = suite.extent(early=stages[key] != Stage.AFTER)
            own = blocks if key[1] == "default" else {block for block in blocks if suite.trials_of(*block)}
            wanted = {(*block, s, f) for block in own for s in sparsities for f in finetunings}
        for cell in sorted(wanted):
            missing = sorted(set(suite.seeds) - cells.get(cell, set()))
            if missing:
                dataset, architecture, sparsity, finetuned = cell
                where = f"{dataset}/{architecture} at sparsity {sparsity:g} with {finetuned} epochs of fine-tuning"
                yield key, f"'{label_of(key)}' has no row for {where}, seeds {', '.join(map(str, missing))}"
                break


def contradictions(rows: Iterable[Row], published: Iterable[Row] = ()) -> Iterator[tuple[Row, str]]:
    """Find rows that contradict other rows of the same leaderboard.

    Args:
        rows: rows that satisfy the rules for one row.
        published: further rows that are right in case of doubt. Without any of the same network or method, most rows are right.

    Yields:
        (row, reason).
    """
    known = _by_cell(published)
    cells = _by_cell(rows)
    cells = {cell: [*known.get(cell, ()), *cells.get(cell, ())] for cell in {**known, **cells}}
    for own in cells.values():
        yield from _twice(own)
    measured = {cell: _measured(own) for cell, own in cells.items()}
    yield from _other_networks(measured, {cell: _measured(own) for cell, own in known.items()})
    yield from _emptied(measured)
    yield from _other_settings(cells, known)
    yield from _without_dense(cells)


def _by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    """The rows that differ only in sparsity, seed, epochs and what was measured. A board has few of these cells and many rows."""
    found: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        found[_cell(row)].append(row)
    return dict(found)


def _measured(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.status in ("ok", "collapsed")]


def _twice(rows: list[Row]) -> Iterator[tuple[Row, str]]:
    """Rows of a cell with the identity of an earlier one."""
    if len(set(map(_within, rows))) == len(rows):
        return
    seen: set[Hashable] = set()
    for row in rows:
        if _within(row) in seen:
            yield row, "the same row (method, data set, sparsity, seed, ...) occurs twice"
        seen.add(_within(row))


def _usual(counts: Iterable[tuple[Hashable, Hashable, int]]) -> dict[Hashable, Hashable]:
    """The most frequent value of each group. `counts`: (group, value, number of rows)."""
    found: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for group, value, count in counts:
        found[group][value] += count
    return {group: values.most_common(1)[0][0] for group, values in found.items()}


def _other_networks(cells: Cells, known: Cells) -> Iterator[tuple[Row, str]]:
    """Counts of the dense network that differ from the other rows of the block."""

    def shapes(part: Cells) -> list[tuple[Hashable, tuple[Any, ...], int]]:
        return [(cell[:2], shape, n) for cell, rows in part.items() for shape, n in Counter(map(_shape, rows)).items()]

    there, told = shapes(cells), shapes(known)
    for k, name in enumerate(SHAPE):
        every, right = (_usual((block, shape[k], n) for block, shape, n in part) for part in (there, told))
        usual = every | right
        wrong = {block for block, shape, _ in there if shape[k] != usual[block]}
        for row in (row for cell, rows in cells.items() if cell[:2] in wrong for row in rows):
            own = usual[row.dataset, row.architecture]
            if getattr(row, name) != own:
                yield row, f"{name} is {getattr(row, name)}, but this network has {own}"


def _emptied(cells: Cells) -> Iterator[tuple[Row, str]]:
    """Measurements that are empty although comparable rows have them."""
    alike: dict[tuple[Cell, bool], list[Row]] = {}
    for cell, rows in cells.items():
        for pruned in {bool(row.criterion) for row in rows}:
            alike[cell, pruned] = [row for row in rows if bool(row.criterion) == pruned]
    for name in MEASURED:
        value = attrgetter(name)
        empty = {key: sum(v is None for v in map(value, rows)) for key, rows in alike.items()}
        old = DECLARED[name].since <= OLDEST
        filled = {_comparable(*key, old) for key, count in empty.items() if count < len(alike[key])}
        for key, count in empty.items():
            if count and _comparable(*key, old) in filled:
                said = f"{name} is empty, but other rows of this network have it"
                yield from ((row, said) for row in alike[key] if value(row) is None)


def _comparable(cell: Cell, pruned: bool, old: bool) -> Hashable:
    """What the cells have in common of which either all rows or none have a measurement. `old`: every release has measured it."""
    finetuned = bool(cell[CELL.index("finetune_epochs")])
    return (*cell[:2], pruned, finetuned, *(() if old else (cell[CELL.index(name)] for name in ("method", "tuning", "ablation"))))


def _other_settings(cells: Cells, known: Cells) -> Iterator[tuple[Row, str]]:
    """Hyperparameters that differ between sparsities or seeds: a method has the same ones in a whole block."""
    every, right = (
        _usual((cell, _setting(text), n) for cell, rows in part.items() for text, n in Counter(map(_hyperparameters, rows)).items())
        for part in (cells, known)
    )
    usual = every | right
    for cell, rows in cells.items():
        wrong = {text for text in set(map(_hyperparameters, rows)) if _setting(text) != usual[cell]}
        if wrong:
            said = "hyperparameters differ from those of the other seeds and sparsities"
            yield from ((row, said) for row in rows if row.hyperparameters in wrong)


@functools.lru_cache(maxsize=10_000)
def _setting(hyperparameters: str) -> str:
    """The hyperparameters without those of fine-tuning."""
    said = decoded(hyperparameters)
    return Setting(said.training, said.criterion, said.schedule, None, said.search).encoded()


@functools.lru_cache(maxsize=10_000)
def _training(hyperparameters: str) -> str:
    return json.dumps(decoded(hyperparameters).training, sort_keys=True)


def _without_dense(cells: Cells) -> Iterator[tuple[Row, str]]:
    """Rows whose dense network is missing, or has other values than the row says."""
    dense: dict[Hashable, Row] = {}
    for rows in cells.values():
        dense |= {_network(row): row for row in rows if not row.criterion}
    for row in itertools.chain.from_iterable(cells.values()):
        own = dense.get(_network(row))
        if own is None:
            yield row, f"the row of its dense network is missing (training '{row.training}', seed {row.seed})"
        elif row.criterion and _said(row) != _own(own):
            yield from _other_values(row, own)


def _other_values(row: Row, own: Row) -> Iterator[tuple[Row, str]]:
    """Values of the dense network that a row has otherwise, though both were measured in the same environment."""
    measured = all(one.status in ("ok", "collapsed") for one in (row, own))
    wrong = [name for name, of in COPIED.items() if getattr(row, name) != getattr(own, of)]
    if measured and wrong and same_environment(row, own):
        yield row, f"{', '.join(wrong)}: not the value of the row of its dense network"


def _network(row: Row) -> Hashable:
    return _dense_of(row), _training(row.hyperparameters)
