"""What to run: a suite, what the user wants instead of the suite's own values, and the methods."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

import methods
from bench import data
from bench.networks import build
from bench.planning.catalogue import select_methods
from bench.spec.choices import Narrowing
from bench.spec.errors import UserError, unknown
from bench.spec.row import ABLATIONS, MATCHES
from bench.spec.setting import Setting
from bench.spec.suite import Suite, first_fault, load_suite
from bench.trial.job import Environment
from methods import Method

Found = Mapping[tuple[str, str, str], Setting]  # (data set, architecture, method) -> what its search has chosen


@dataclass(frozen=True)
class Request:
    """What to run: a suite (already narrowed), the methods, their controls, and where.

    `tuned`: what tuning has found; with it, the rows are those of the tuned methods.
    """

    suite: Suite
    methods: tuple[Method, ...]
    environment: Environment
    ablations: tuple[str, ...] = ()
    tuned: Found | None = None


def make_request(suite: str, narrowing: Narrowing, environment: Environment, ablations: Iterable[str] = ()) -> Request:
    """The request for a suite by name or file. Raises UserError for names and values that cannot be."""
    ablations = tuple(dict.fromkeys(ablations))
    for name in ablations:
        if name not in ABLATIONS:
            raise unknown("ablation", name, ABLATIONS)
    loaded = load_suite(suite)
    chosen = select_methods(",".join(narrowing.methods if narrowing.methods is not None else loaded.methods))
    return Request(of_granularity(narrowed(loaded, narrowing), ablations, narrowing.sparsities), chosen, environment, ablations)


def narrowed(suite: Suite, narrowing: Narrowing) -> Suite:
    """The suite with these values instead of its own.

    Data sets or architectures given replace the suite's and are crossed with the others; a data set that is new to the suite
    gets all its architectures. Raises UserError for unknown names and for values the suite would refuse.
    """
    datasets, chosen = (list(dict.fromkeys(names or ())) for names in (narrowing.datasets, narrowing.architectures))
    own = {b.dataset: b.architectures for b in suite.blocks}
    every = list(dict.fromkeys(a for b in suite.blocks for a in b.architectures))
    for name in datasets:
        data.describe(name)
    for name in chosen:
        build.describe(name)
    blocks = [{"dataset": d, "architectures": chosen or own.get(d, every)} for d in datasets or own]
    apart = ("methods", "datasets", "architectures")
    changes = {f.name: getattr(narrowing, f.name) for f in dataclasses.fields(narrowing) if f.name not in apart}
    try:
        return Suite.model_validate(suite.model_dump() | {"blocks": blocks} | {k: v for k, v in changes.items() if v is not None})
    except ValidationError as error:
        raise UserError(first_fault(error)) from None


def of_granularity(suite: Suite, ablations: Iterable[str] = (), sparsities: Iterable[float] | None = None) -> Suite:
    """The suite at the one sparsity of its granularity, if that has only one (2:4); otherwise as it is.

    Raises UserError where there is no such granularity, or its match, the controls or the `sparsities` asked for do not go with it.
    """
    try:
        found = methods.get_granularity(suite.granularity)
    except ValueError as error:
        raise UserError(str(error)) from None
    if suite.match not in MATCHES:
        raise unknown("--match", suite.match, MATCHES)
    if suite.match != "weights" and not found.compacts:
        raise UserError(f"--match {suite.match} needs networks that become smaller: --granularity channel, not '{suite.granularity}'")
    only = found.fixed_sparsity
    if "shuffle" in ablations and (found.compacts or only is not None):
        raise UserError(f"--ablate shuffle permutes single weights: it goes with --granularity weight, not '{suite.granularity}'")
    if only is None:
        return suite
    if sparsities is not None and list(sparsities) != [only]:
        raise UserError(f"--sparsities does not apply: granularity '{suite.granularity}' has the sparsity {only:g}")
    return suite.model_copy(update={"sparsities": (only,)})
