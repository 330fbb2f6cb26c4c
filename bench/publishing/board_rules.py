"""Rules for all rows of a leaderboard together: rows that its suite requires, and values that several rows must share.

`publish` and `merge` apply them before they write, `verify` to what is published. Nothing is trained.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from bench.publishing.row_comparison import MEASURED, same_environment
from bench.publishing.row_rules import SHAPE
from bench.spec.row import DECLARED, Row
from bench.spec.setting import Setting, decoded
from bench.spec.suite import Suite
from methods import Stage

Key = tuple[str, str, str]  # method, tuning, ablation
CONTROLS = ("random", "magnitude", "magnitude_layer")  # protocol, rule 8
CONTROLS_AT_INIT = ("random_init",)
LEAST_SEEDS = 3  # protocol, rule 9
OLDEST = 2  # columns up to this schema are in every row


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
    names, stages = (set(column) for column in zip(*rows, strict=True)) if (rows := list(rows)) else (set[str](), set[str]())
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
    known = list(published)
    rows = [*known, *rows]
    seen: set[Hashable] = set()
    for row in rows:
        if row.identity in seen:
            yield row, "the same row (method, data set, sparsity, seed, ...) occurs twice"
        seen.add(row.identity)
    measured = [row for row in rows if row.status in ("ok", "collapsed")]
    yield from _other_networks(measured, [row for row in known if row.status in ("ok", "collapsed")])
    yield from _emptied(measured)
    yield from _other_settings(rows, known)
    yield from _without_dense(rows)


def _block(row: Row) -> tuple[str, str]:
    return row.dataset, row.architecture


def _usual(rows: list[Row], known: list[Row], of: Any, value: Any) -> Mapping[Hashable, Hashable]:
    """The most frequent value in each group of rows, of the known ones if there are any. `of`: row -> group. `value`: row -> value."""
    found: dict[Hashable, Hashable] = {}
    for part in (rows, known):
        counts: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
        for row in part:
            counts[of(row)][value(row)] += 1
        found |= {group: values.most_common(1)[0][0] for group, values in counts.items()}
    return found


def _other_networks(rows: list[Row], known: list[Row]) -> Iterator[tuple[Row, str]]:
    """Counts of the dense network that differ from the other rows of the block."""
    for name in SHAPE:
        usual = _usual(rows, known, _block, lambda row, name=name: getattr(row, name))
        for row in rows:
            if getattr(row, name) != usual[_block(row)]:
                yield row, f"{name} is {getattr(row, name)}, but this network has {usual[_block(row)]}"


def _emptied(rows: list[Row]) -> Iterator[tuple[Row, str]]:
    """Measurements that are empty although comparable rows have them."""
    for name in MEASURED:
        old = DECLARED[name].since <= OLDEST

        def group(row: Row, old: bool = old) -> Hashable:
            own = () if old else (row.method, row.tuning, row.ablation)
            return (*_block(row), bool(row.criterion), bool(row.finetune_epochs), *own)

        filled = {group(row) for row in rows if getattr(row, name) is not None}
        for row in rows:
            if getattr(row, name) is None and group(row) in filled:
                yield row, f"{name} is empty, but other rows of this network have it"


def _other_settings(rows: list[Row], known: list[Row]) -> Iterator[tuple[Row, str]]:
    """Hyperparameters that differ between sparsities or seeds: a method has the same ones in a whole block."""

    def setting(row: Row) -> str:
        said = decoded(row.hyperparameters)
        return Setting(said.training, said.criterion, said.schedule, None, said.search).encoded()

    def cell(row: Row) -> Hashable:
        return (*_block(row), *key_of(row), row.granularity, row.match, row.finetune_epochs)

    usual = _usual(rows, known, cell, setting)
    for row in rows:
        if setting(row) != usual[cell(row)]:
            yield row, "hyperparameters differ from those of the other seeds and sparsities"


def _without_dense(rows: list[Row]) -> Iterator[tuple[Row, str]]:
    """Rows whose dense network is missing, or has other values than the row says."""

    def network(row: Row) -> Hashable:
        training = json.dumps(decoded(row.hyperparameters).training, sort_keys=True)
        return (*_block(row), row.seed, row.finetune_epochs, row.training, training, row.recalibration)

    dense = {network(row): row for row in rows if not row.criterion}
    for row in rows:
        own = dense.get(network(row))
        if own is None:
            yield row, f"the row of its dense network is missing (training '{row.training}', seed {row.seed})"
        elif own.status in ("ok", "collapsed") and same_environment(row, own):
            copied = {"dense_accuracy": "accuracy", "dense_nll": "nll", "dense_training_flops": "training_flops"}
            wrong = [name for name, of in copied.items() if row.criterion and getattr(row, name) != getattr(own, of)]
            if wrong and row.status in ("ok", "collapsed"):
                yield row, f"{', '.join(wrong)}: not the value of the row of its dense network"
