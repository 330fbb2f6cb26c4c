"""A request: what to run, from a suite, values that replace the suite's, and methods."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

import methods
from bench import data
from bench.networks import build
from bench.planning.catalogue import select_methods
from bench.planning.trained import check_trained, without_training
from bench.spec.choices import Narrowing
from bench.spec.errors import UserError, unknown
from bench.spec.row import ABLATIONS, MATCHES
from bench.spec.setting import Setting
from bench.spec.suite import Suite, first_fault, load_suite
from bench.trial import loading
from bench.trial.job import Environment
from methods import Method

Found = Mapping[tuple[str, str, str], Setting]  # (data set, architecture, method) -> tuned hyperparameters


@dataclass(frozen=True)
class Request:
    """What to run.

    `suite`: the suite, with the user's values already inserted. `environment`: device, folders and plug-ins. `ablations`: to run for each
    method, see `bench.spec.row.ABLATIONS`. `tuned`: tuned hyperparameters, for tuned rows; None: default hyperparameters.
    """

    suite: Suite
    methods: tuple[Method, ...]
    environment: Environment
    ablations: tuple[str, ...] = ()
    tuned: Found | None = None


def make_request(suite: str, narrowing: Narrowing, environment: Environment, ablations: Iterable[str] = ()) -> Request:
    """Make the request for a suite.

    Args:
        suite: name or .toml file of the suite.
        narrowing: values to use instead of the suite's.
        environment: device, folders and plug-ins.
        ablations: ablations to run for each method.

    Raises:
        UserError: a name is unknown or a value is invalid.
    """
    loading.forget()  # a process, e.g. a notebook, may run several requests
    ablations = tuple(dict.fromkeys(ablations))
    for name in ablations:
        if name not in ABLATIONS:
            raise unknown("ablation", name, ABLATIONS)
    loaded = load_suite(suite)
    named = narrowing.methods if narrowing.methods is not None else loaded.methods
    made = of_granularity(narrowed(loaded, narrowing), ablations, narrowing.sparsities)
    chosen = select_methods(",".join(named), made.granularity)
    check_trained(made, ablations)
    return Request(made, chosen if made.epochs else without_training(chosen, named), environment, ablations)


def narrowed(suite: Suite, narrowing: Narrowing) -> Suite:
    """The suite with the user's values.

    Given data sets or architectures replace the suite's. Given architectures are run on every data set. Without them, a data set keeps
    its architectures in the suite, and a data set that is not in the suite gets all architectures of the suite. Sparsities, and
    numbers of fine-tuning epochs without 0, are for all methods, also where the suite has `early_sparsities`.

    Args:
        suite: the suite.
        narrowing: values to use instead of the suite's.

    Raises:
        UserError: a name is unknown or a value is invalid in a suite.
    """
    datasets, chosen = (list(dict.fromkeys(names or ())) for names in (narrowing.datasets, narrowing.architectures))
    own = list(dict.fromkeys(b.dataset for b in suite.blocks))
    every = list(dict.fromkeys(a for b in suite.blocks for a in b.architectures))
    for name in datasets:
        data.describe(name)
    for name in chosen:
        build.describe(name)
    apart = ("methods", "datasets", "architectures")
    base = suite.model_dump()
    given = {f.name: getattr(narrowing, f.name) for f in dataclasses.fields(narrowing) if f.name not in apart}
    changes = {name: value for name, value in given.items() if value is not None}
    if "sparsities" in changes and suite.early_sparsities is not None:
        base["early_sparsities"] = changes["sparsities"]
    if 0 not in changes.get("finetune_epochs", (0,)):  # the user asks for fine-tuned rows only: every method has them
        base["early_sparsities"] = None
    blocks = [b for d in datasets or own for b in _blocks(suite, d, chosen, every)]
    for own_values in (*blocks, *base["architecture"].values()):  # the user's values also instead of those of blocks and architectures
        own_values.update((name, None) for name in changes.keys() & own_values.keys())
    try:
        return Suite.model_validate(base | {"blocks": blocks} | changes)
    except ValidationError as error:
        raise UserError(first_fault(error)) from None


def _blocks(suite: Suite, dataset: str, chosen: list[str], every: list[str]) -> list[dict[str, Any]]:
    """The blocks of a data set with the values of the suite's; `chosen` architectures, else the suite's, else `every`."""
    own = [b for b in suite.blocks if b.dataset == dataset]
    if not own:
        return [{"dataset": dataset, "architectures": chosen or every}]
    if not chosen:
        return [b.model_dump() for b in own]
    homes = {name: next((b for b in own if name in b.architectures), own[0]) for name in chosen}
    return [b.model_dump() | {"architectures": names} for b in own if (names := [name for name in chosen if homes[name] is b])]


def of_granularity(suite: Suite, ablations: Iterable[str] = (), sparsities: Iterable[float] | None = None) -> Suite:
    """Check the granularity of a suite. A granularity with a fixed sparsity, such as 2:4, replaces the suite's sparsities.

    Args:
        suite: the suite.
        ablations: ablations to run.
        sparsities: sparsities that the user asked for, or None.

    Returns:
        The suite, with the fixed sparsity if there is one.

    Raises:
        UserError: the granularity is unknown, or `match`, the ablations or the sparsities do not fit to it.
    """
    try:
        found = methods.get_granularity(suite.granularity)
    except ValueError as error:
        raise UserError(str(error)) from None
    if suite.match not in MATCHES:
        raise unknown("--match", suite.match, MATCHES)
    if suite.match != "weights" and not found.compacts:
        raise UserError(f"--match {suite.match} needs --granularity channel, which makes networks smaller, not '{suite.granularity}'")
    only = found.fixed_sparsity
    if "shuffle" in ablations and (found.compacts or only is not None):
        raise UserError(f"--ablate shuffle permutes single weights: it works only with --granularity weight, not '{suite.granularity}'")
    if only is None:
        return suite
    if sparsities is not None and list(sparsities) != [only]:
        raise UserError(f"--sparsities does not apply: granularity '{suite.granularity}' has the fixed sparsity {only:g}")
    return suite.model_copy(update={"sparsities": (only,), "early_sparsities": suite.early_sparsities and (only,)})
