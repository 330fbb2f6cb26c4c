"""Lists of everything that is registered, contract checks, and the template of a new method."""

import keyword
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import methods
from bench.spec.errors import UserError
from bench.spec.suite import load_suite, suites
from methods import Stage
from methods.checking import clauses
from methods.checking.clauses import Finding
from methods.registry.registry import KINDS, RESERVED

WHEN = {Stage.INIT: "at initialisation", Stage.DURING: "while training", Stage.AFTER: "after training"}


def load_plugins(files: Iterable[str]) -> list[str]:
    """Load plug-in files.

    Returns:
        The names that they registered.

    Raises:
        UserError: a file cannot be loaded.
    """
    added = []
    for file in files:
        try:
            added += methods.load_plugin(file)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None
    return added


def select_methods(names: str) -> tuple[methods.Method, ...]:
    """The methods in a comma-separated list, each once.

    Args:
        names: method names; `all` means all registered methods except the costly ones, `all@TRAINING` those of them that are applied
            after training or at initialisation and have no training of their own, each with this training.

    Raises:
        UserError: a name is unknown, or the list is empty.
    """
    chosen: dict[str, methods.Method] = {}
    for name in filter(None, (part.strip() for part in re.split(r",(?![^()]*\))", names))):  # commas inside brackets separate options
        chosen |= {m.name: m for m in _named(name)}
    if not chosen:
        raise UserError(f"no method name in '{names}'; available: all, {', '.join(methods.names())}")
    return tuple(chosen.values())


def _named(name: str) -> list[methods.Method]:
    """The methods of one entry of a list: `all`, `all@TRAINING` or a method name."""
    left, at, training = name.partition("@")
    if left.strip() != "all":
        return [get_method(name)]
    every = [m for m in map(methods.get, methods.names()) if not m.costly]
    if not at:
        return every
    return [get_method(f"{m.name}@{training}") for m in every if m.training == "map" and m.stage is not Stage.DURING]


def get_method(name: str) -> methods.Method:
    """The method of this name.

    Raises:
        UserError: it is unknown.
    """
    try:
        return methods.get(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def entries(what: str, plugins: Iterable[str] = (), method: str | None = None) -> Iterator[tuple[str, str]]:
    """Everything of one kind, for `list`.

    Args:
        what: "methods", "criteria", "trainings", "granularities", "architectures", "datasets", "suites" or "hyperparameters".
        plugins: plug-in files to load before.
        method: the method, for "hyperparameters".

    Yields:
        (name, description).

    Raises:
        UserError: the method is unknown, or a plug-in cannot be loaded.
    """
    load_plugins(plugins)
    if what == "hyperparameters":
        yield from _hyperparameters(get_method(method or ""))
    elif what == "methods":
        for name in methods.names():
            m = methods.get(name)
            about = [f"criterion {m.criterion}, training {m.training}, applied {WHEN[m.stage]}"]
            about += [f"{k}={v}" for k, v in {**m.options, **m.training_options}.items()]
            about += [str(m.schedule)] * (m.schedule is not None)
            yield name, ", ".join(about + ["costly"] * m.costly)
    elif what == "suites":
        for name in suites():
            yield name, load_suite(name).description
    elif what == "architectures":
        from bench.networks import build

        yield from ((name, build.describe(name)) for name in build.names())
        yield "...", f"and any of timm's {len(build.timm_names())} names"
    elif what == "datasets":
        from bench import data

        yield from ((name, data.describe(name)) for name in data.names())
    else:
        for name in methods.names(what):
            yield name, _first_sentence(methods.lookup(what, name))


def _hyperparameters(method: methods.Method) -> Iterator[tuple[str, str]]:
    """(name, default, allowed values, meaning) of what may stand in brackets after a method's name."""
    for option in methods.describe(method.name):
        fixed = " (fixed by the name)" * option.fixed
        searched = f"; tuning searches {option.searched}" * bool(option.searched and not option.fixed)
        yield option.name, f"{option.meaning} [{option.part}]: default {option.default}{fixed}; {option.allowed}{searched}"


def _first_sentence(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".:")


def checked(entry: str | None, plugins: Iterable[str] = ()) -> Iterator[tuple[str, list[Finding]]]:
    """Check the contract of registered classes.

    Args:
        entry: a method, criterion, training or granularity, or the path of a .py file; None checks everything.
        plugins: plug-in files to load before.

    Yields:
        (title, findings) of each class.

    Raises:
        UserError: the name is unknown, or a file cannot be loaded.
    """
    load_plugins(plugins)
    if entry is None:
        chosen = list(dict.fromkeys(name for kind in KINDS for name in methods.names(kind)))
    else:
        chosen = load_plugins([entry]) if entry.endswith(".py") or "/" in entry else [entry]
    try:
        classes = list(dict.fromkeys(cls for name in chosen for cls in clauses.entries(name)))
    except ValueError as error:
        raise UserError(str(error)) from None
    for cls in classes:
        kind = next(base for base in KINDS.values() if issubclass(cls, base))
        yield f"{kind.__name__.lower()} {cls.name}", methods.check(cls)


TEMPLATE = '''"""{title}: describe in one line which weights are kept."""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch

import methods
from methods import Criterion, Int, Problem, Scores, Stage


@methods.register("{name}")
@dataclass(frozen=True, kw_only=True)
class {title}(Criterion):
    """s_k = (w_k g_k)^2, g = dL/dw: the squared first-order change of the loss when w_k is removed.

    Replace formula and code by your own. Cite the paper and the equation, and describe every deviation from it.
    Weights with larger scores are kept. Randomness comes from `problem.generator("purpose")`, data from `problem.read()`.

    Reference: Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, equation 8, for single weights.
    """

    # When it may be applied, the default first: AFTER training, at initialisation (INIT), DURING training.
    stages: ClassVar = (Stage.AFTER, Stage.INIT, Stage.DURING)
    # True: the scores do not depend on mask or target sparsity. They are computed once for all sparsities.
    nested: ClassVar = True

    # A hyperparameter: its default, and the range that tuning may choose from.
    n_batches: int = Int(10, 1, 100, log=True)

    def score(self, problem: Problem) -> Scores:
        """(w * g)^2, where g is the gradient summed over the first batches; one score per weight, in the shape of the weight tensor."""
        weights = problem.weights
        total = {{name: torch.zeros_like(w) for name, w in weights.items()}}
        for x, y in islice(problem.read(), self.n_batches):
            loss = problem.loss(problem.model(x), y)
            for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values()), materialize_grads=True), strict=True):
                total[name] += g
        return Scores({{name: (w.detach() * total[name]).square() for name, w in weights.items()}})
'''


def write_template(name: str, directory: Path) -> Path:
    """Write a new criterion that passes the contract.

    Args:
        name: name of the criterion.
        directory: folder of the file; it is created if necessary.

    Returns:
        The path of the file, `name`.py.

    Raises:
        UserError: the name is invalid or already registered, or the file exists or cannot be written.
    """
    if not name.isidentifier() or name != name.lower() or name.startswith("_") or keyword.iskeyword(name):
        raise UserError(f"'{name}' is not a valid method name: use lower-case letters, digits and underscores, starting with a letter")
    taken = [*methods.names(), *(n for kind in KINDS for n in methods.names(kind))]
    if name in RESERVED:
        raise UserError(f"'{name}' is reserved for {RESERVED[name]}; choose another name")
    if name in taken:
        raise UserError(f"'{name}' is already registered; choose another name")
    path = directory / f"{name}.py"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(name=name, title="".join(part.capitalize() for part in name.split("_"))))
    except FileExistsError:
        raise UserError(f"'{path}' already exists; nothing was written") from None
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}") from None
    return path
