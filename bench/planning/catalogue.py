"""Lists of everything that is registered, and the methods and plug-ins that a user names."""

import re
from collections.abc import Iterable, Iterator

import methods
from bench.spec import own_file
from bench.spec.errors import UserError
from bench.spec.suite import load_suite, suites
from methods import Stage

WHEN = {Stage.INIT: "at initialisation", Stage.DURING: "while training", Stage.AFTER: "after training"}


def load_plugins(files: Iterable[str]) -> list[str]:
    """Load plug-in files.

    Returns:
        The names of the methods, of their parts, and of the metrics that they register.

    Raises:
        UserError: a file cannot be loaded, or neither registers anything nor has a function that `FILE.py:NAME` could name.
    """
    from bench.networks import plugins
    from bench.trial import metrics

    added = []
    for file in files:
        try:
            found = plugins.load(file)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None
        measured = metrics.of_module(found.module)
        if not (found.methods or measured or found.networks or plugins.functions(found.module)):
            raise UserError(
                f"plug-in {file} registers nothing: use @methods.register('name') on a Criterion, Training or Granularity, @bench.metric"
                " on a function of outputs, or @timm.models.register_model on a function that makes a network"
            )
        added += [*found.methods, *measured]
    return added


def select_methods(names: str, granularity: str | None = None) -> tuple[methods.Method, ...]:
    """The methods in a comma-separated list, each once.

    Args:
        names: method names; `all` means all registered methods except the costly ones, `all@TRAINING` those of them that are applied
            after training or at initialisation and have no training of their own, each with this training.
        granularity: what is removed; `all` leaves out the methods whose criterion is not defined for it. None: any.

    Raises:
        UserError: a name is unknown, a named method is not defined for the granularity, or the list is empty.
    """
    chosen: dict[str, methods.Method] = {}
    for name in filter(None, (part.strip() for part in re.split(r",(?![^()]*\))", names))):  # commas inside brackets separate options
        for method in _named(name):
            refusal = _refusal(method, granularity)
            if refusal is None:
                chosen[method.name] = method
            elif name.partition("@")[0].strip() != "all":
                raise UserError(f"method '{method.name}': {refusal}")
    if not chosen:
        raise UserError(f"no method name in '{names}'; available: all, {', '.join(methods.names())}")
    return tuple(chosen.values())


def _refusal(method: methods.Method, granularity: str | None) -> str | None:
    """Why a method's criterion is not defined for a granularity; None if it is."""
    return None if granularity is None else method.make_criterion().refusal(methods.get_granularity(granularity))


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
            about += [f"granularity {' or '.join(only)} only" for only in [m.make_criterion().granularities] if only]
            yield name, ", ".join(about + ["costly"] * m.costly)
    elif what == "suites":
        for name in suites():
            yield name, load_suite(name).description
    elif what == "architectures":
        from bench.networks import build

        yield from ((name, build.describe(name)) for name in build.names())
        yield from ((name, f"entry point of {own_file.GROUPS['architecture']}") for name in own_file.entry_names("architecture"))
        yield own_file.FORM, f"your own: a function or class that makes a network; it may name {', '.join(build.OFFERED)}"
        yield "...", f"and any of timm's {len(build.timm_names())} names"
    elif what == "datasets":
        from bench import data

        entries = own_file.entry_names("dataset")
        yield from ((name, data.describe(name)) for name in data.names() if name not in entries)
        yield from ((name, f"entry point of {own_file.GROUPS['dataset']}") for name in entries)
    elif what == "metrics":
        from bench.trial import metrics

        yield from ((name, _first_line(function)) for name, function in metrics.METRICS.items())
    else:
        for name in methods.names(what):
            yield name, _first_sentence(methods.lookup(what, name))


def _hyperparameters(method: methods.Method) -> Iterator[tuple[str, str]]:
    """(name, default, allowed values, meaning) of what may stand in brackets after a method's name."""
    for option in methods.describe(method.name):
        fixed = " (fixed by the name)" * option.fixed
        searched = f"; tuning searches {option.searched}" * bool(option.searched and not option.fixed)
        yield option.name, f"{option.meaning} [{option.part}]: default {option.default}{fixed}; {option.allowed}{searched}"


def _first_line(function: object) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def _first_sentence(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".:")
