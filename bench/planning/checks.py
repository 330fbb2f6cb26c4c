"""`check`: the contract of registered classes, and of networks and data sets of the user's own."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.data import dataset, own
from bench.data.examples import check_inputs, check_labels
from bench.data.files import digest
from bench.networks import build
from bench.networks import own as own_networks
from bench.planning.catalogue import load_plugins
from bench.planning.metric_checks import metric_findings
from bench.spec import own_file
from bench.spec.errors import UserError
from bench.trial import metrics
from bench.trial.architecture import state_digest
from methods.checking import clauses
from methods.checking.clauses import Finding
from methods.registry.registry import KINDS

# Examples that a network is tried on, until it accepts one: input shapes, then numbers of classes.
SHAPES = ((3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 224, 224), (30,))
CLASSES = (10, 2, 100, 1000)


def checked(entry: str | None, plugins: Iterable[str] = (), root: Path | None = None) -> Iterator[tuple[str, list[Finding]]]:
    """Check the contract of registered classes, or of a network or data set of the user's own.

    Args:
        entry: a method, criterion, training, granularity or metric of a plug-in, the path of a .py file that registers some,
            `FILE.py:NAME`, or the name of an entry point; None checks everything that is registered.
        plugins: plug-in files to load before.
        root: the folder of `--data-root`, for a data set with the parameter `root`.

    Yields:
        (title, findings) of each class, network or data set.

    Raises:
        UserError: the name is unknown, or a file cannot be loaded.
    """
    load_plugins(plugins)
    if entry is not None and any(own_file.is_own(kind, entry) for kind in own_file.GROUPS):
        yield _own(entry, root)
        return
    if entry is None:
        chosen = list(dict.fromkeys(name for kind in KINDS for name in methods.names(kind)))
    else:
        is_file = entry.endswith(".py") or "/" in entry
        chosen = load_plugins([entry]) if is_file else [entry]
        if not chosen:
            raise UserError(f"'{entry}' registers nothing to check; to check a network or a data set of it, write {entry}:NAME")
    measured = metrics.plugin_metrics()
    for name in [name for name in chosen if name in measured]:
        yield f"metric {name}", metric_findings(name, measured[name])
    chosen = [name for name in chosen if name not in measured]
    try:
        classes = list(dict.fromkeys(cls for name in chosen for cls in clauses.entries(name)))
    except ValueError as error:
        raise UserError(str(error)) from None
    for cls in classes:
        kind = next(base for base in KINDS.values() if issubclass(cls, base))
        yield f"{kind.__name__.lower()} {cls.name}", methods.check(cls)


def _own(name: str, root: Path | None) -> tuple[str, list[Finding]]:
    """The title and the findings of a network or data set, whichever the function makes."""
    kind = next(kind for kind in own_file.GROUPS if own_file.is_own(kind, name))
    function = own_file.function(kind, name)
    if own_file.parts(name) is not None and not _makes_network(function):
        kind = "dataset"
    return f"{kind} {name}", (_network(name, function) if kind == "architecture" else _data(name, function, root))


def _makes_network(function: Callable[..., Any]) -> bool:
    """Whether a function makes a network: by its parameters or, if these do not tell, by its result."""
    if isinstance(function, type):
        return issubclass(function, nn.Module)
    named = inspect.signature(function).parameters
    if named.keys() & set(own_networks.OFFERED):
        return True
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in named.values()):
        return "root" not in named
    try:
        return isinstance(function(), nn.Module)
    except Exception:  # the check of a data set reports it
        return False


class _Clauses:
    """Findings of clauses that build on each other: after a failure the others are skipped."""

    def __init__(self, entry: str) -> None:
        self.entry, self.findings = entry, list[Finding]()
        self.failed = False

    def ask(self, clause: str, question: Callable[[], Any]) -> Any:
        """The answer to a question, which raises UserError if the clause is broken; None if it is broken or skipped."""
        if self.failed:
            self.findings.append(Finding(self.entry, clause, skipped="after the failure above"))
            return None
        try:
            answer = question()
        except UserError as error:
            self.failed = True
            self.findings.append(Finding(self.entry, clause, error=str(error)))
            return None
        self.findings.append(Finding(self.entry, clause))
        return answer


def _network(name: str, function: Callable[..., Any]) -> list[Finding]:
    """Findings of a network."""
    asked = _Clauses(name)
    title = f"architecture '{name}'"

    examples = asked.ask("makes a module with finite outputs (n, classes)", lambda: _accepted(function, title))

    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build.built(function, title, *examples)

    def repeats() -> None:
        if state_digest(seeded()) != state_digest(seeded()):
            raise UserError("initial weights differ between two calls with the same seed: draw them from torch's global generator")

    def prunable() -> None:
        try:
            found = methods.full_mask(seeded())
        except ValueError as error:
            raise UserError(str(error)) from None
        if not found:
            raise UserError("no prunable weights: none of its parameters is a matrix or kernel that multiplies activations")

    def trainable() -> None:
        if not any(p.requires_grad for p in seeded().parameters()):
            raise UserError("no parameter requires a gradient, so that there is nothing to train")

    asked.ask("makes a new module with the same initial weights for the same seed", repeats)
    asked.ask("has prunable weights", prunable)
    asked.ask("has parameters to train", trainable)
    return asked.findings


def _accepted(function: Callable[..., Any], title: str) -> tuple[tuple[int, ...], int]:
    """The first shape and number of classes that a network accepts; raises the UserError of the first one if it accepts none."""
    first: UserError | None = None
    for classes, shape in itertools.product(CLASSES, SHAPES):
        try:
            with torch.random.fork_rng(devices=[]):
                build.built(function, title, shape, classes)
        except UserError as error:
            first = first or error
        else:
            return shape, classes
    assert first is not None
    raise first


def _data(name: str, function: Callable[..., Any], root: Path | None) -> list[Finding]:
    """Findings of a data set."""
    asked = _Clauses(name)
    given = asked.ask("returns train and test", lambda: own.returned(function, name, root))
    parts = asked.ask("parts are pairs of inputs and labels", lambda: own.tensors(name, given))
    asked.ask("inputs are finite and have one size", lambda: check_inputs(name, parts))
    asked.ask("labels are 0 to classes - 1, in every part", lambda: check_labels(name, parts))
    asked.ask("can be split for training and validation", lambda: dataset.load(name, root))

    def repeats() -> None:
        first = digest(tensor for part in parts.values() for tensor in part)
        again = own.tensors(name, own.returned(function, name, root))
        if first != digest(tensor for part in again.values() for tensor in part):
            raise UserError("two calls return different examples: fix the seed of everything that is random")

    asked.ask("returns the same examples in every call", repeats)
    return asked.findings
