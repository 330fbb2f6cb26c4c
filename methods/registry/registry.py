"""Where methods are found by name: registration, composition (`criterion@training`), plug-ins."""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from methods.core.hyperparameters import ranges
from methods.core.interface import Configuration, Criterion, Granularity, Stage, Training
from methods.core.schedule import Gradual, Schedule
from methods.registry import spelling

ENTRY_POINTS = "razorbench.methods"
KINDS: dict[str, type[Configuration]] = {"criteria": Criterion, "trainings": Training, "granularities": Granularity}
_registered: dict[str, dict[str, type[Configuration]]] = {kind: {} for kind in KINDS}
_methods: dict[str, "Method"] = {}
SCHEDULES: dict[str, Schedule] = {}  # name -> what `criterion(schedule=name)` means
RESERVED = {"dense": "the rows of unpruned networks", "all": "every method"}  # what a name on the command line or a board stands for
_loaded: set[str] = set()
C = TypeVar("C", bound=type[Configuration])


class UnknownName(ValueError):
    """A name nobody registered; the message names it, the nearest match and what there is."""


@dataclass(frozen=True)
class Method:
    """A named value on the leaderboard: a criterion with options, a training, and the stage where the criterion is applied.

    `options` and `training_options` are fixed by the name and never tuned. `costly` methods must be asked for by name.
    `schedule` says when to cut: needed at stage DURING, allowed at AFTER, and made for the stage it is given at. Raises ValueError
    where it is missing or does not fit, or the criterion does not allow the stage.
    """

    name: str
    criterion: str
    training: str = "map"
    stage: Stage = Stage.AFTER
    options: Mapping[str, Any] = field(default_factory=dict)
    training_options: Mapping[str, Any] = field(default_factory=dict)
    costly: bool = False
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.stage == Stage.DURING and self.schedule is None:
            raise ValueError(f"method '{self.name}' prunes while training: it needs a schedule")
        if self.schedule is not None and self.stage != self.schedule.stage:
            raise ValueError(
                f"method '{self.name}': a schedule '{self.schedule.kind}' is for stage '{self.schedule.stage}', not '{self.stage}'"
            )
        cls = _registered["criteria"].get(self.criterion)
        if cls is not None and issubclass(cls, Criterion) and self.stage not in cls.stages:
            allowed = ", ".join(cls.stages)
            raise ValueError(f"method '{self.name}': criterion '{self.criterion}' is for stage {allowed}, not '{self.stage}'")

    def make_criterion(self, **hyperparameters: Any) -> Criterion:
        """The criterion with this method's options and the given hyperparameters; ValueError where one does not exist."""
        made: Criterion = make("criteria", self.criterion, self._with(hyperparameters, self.options))
        return made

    def make_training(self, **hyperparameters: Any) -> Training:
        """The training with this method's options and the given hyperparameters."""
        made: Training = make("trainings", self.training, self._with(hyperparameters, self.training_options))
        return made

    def _with(self, asked: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in fixed.items():
            if asked.get(name, value) != value:
                raise ValueError(f"'{self.name}' has {name}={value!r} by name; {name}={asked[name]!r} is another method")
        return {**asked, **fixed}


def nearest(name: str, options: Iterable[str]) -> str:
    """' (did you mean X?)' where an option is close to the name, else ''."""
    match = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def unknown(kind: str, name: str, options: Iterable[str]) -> UnknownName:
    """The one-line error for a name that is not among the options."""
    options = list(options)
    return UnknownName(f"unknown {kind} '{name}'{nearest(name, options)}; available: {', '.join(options)}")


def register(name: str, *, costly: bool = False) -> Callable[[C], C]:
    """Class decorator that registers a Criterion, a Training or a Granularity under its name.

    A criterion becomes a method of that name under training `map` at its default stage (DURING: by the default `Gradual`).
    Names are lower-case words joined by underscores (or n:m). Raises ValueError where the name is taken or reserved, TypeError
    where the class is none of these.
    """

    def add(cls: C) -> C:
        kind = next((k for k, base in KINDS.items() if isinstance(cls, type) and issubclass(cls, base)), None)
        if kind is None:
            raise TypeError(f"register('{name}'): {cls!r} is neither a Criterion nor a Training nor a Granularity")
        _refuse_reserved(f"register('{name}')", name)
        if not name.replace("_", "").replace(":", "").isalnum() or name != name.lower():
            raise ValueError(f"register('{name}'): a name is lower-case letters, digits and underscores")
        if name in _registered[kind] or (kind == "criteria" and name in _methods):
            raise ValueError(f"register('{name}'): the name is taken in {kind}")
        cls.name = name
        _registered[kind][name] = cls
        if issubclass(cls, Criterion):
            stage = cls.stages[0]
            define(Method(name, name, stage=stage, costly=costly, schedule=Gradual() if stage == Stage.DURING else None))
        return cls

    return add


def define(method: Method) -> None:
    """Add one named method to the table. Raises ValueError where the name is reserved or there, or the same under another name."""
    _refuse_reserved(f"method '{method.name}'", method.name)
    if method.name in _methods:
        raise ValueError(f"method '{method.name}' is defined twice")
    twin = next((m.name for m in _methods.values() if _identity(m) == _identity(method)), None)
    if twin is not None:
        raise ValueError(f"method '{method.name}' is '{twin}' under another name")
    _methods[method.name] = method


def _refuse_reserved(what: str, name: str) -> None:
    """ValueError where a name, or what stands before its training and options, is reserved."""
    plain = name.partition("@")[0].partition("(")[0].strip()
    if plain in RESERVED:
        raise ValueError(f"{what}: the name '{plain}' is reserved for {RESERVED[plain]}")


def _identity(m: Method) -> tuple[Any, ...]:
    return m.criterion, m.training, m.stage, m.schedule, tuple(sorted(m.options.items())), tuple(sorted(m.training_options.items()))


def names(kind: str = "methods") -> list[str]:
    """The registered names of one kind: methods, criteria, trainings or granularities, in order of registration."""
    load_entry_points()
    return list(_methods if kind == "methods" else _registered[kind])


def get(name: str) -> Method:
    """The method of that name. `criterion@training` composes, and is normalised to a registered method that equals it.

    Hyperparameters may be fixed in brackets, of the criterion or of the training after `@`: `magnitude@map(weight_decay=0.005)`,
    `opd(form=eigenbasis)@spam(prior=layer)`; those of a name without `@` may be of either. `obd(schedule=iterative)` cuts by a
    schedule: `SCHEDULES`. The method's own name is the one spelling of it: `opd(precision=2)` is `opd(precision=2.0)`, and options
    that are so anyway are left out. Raises ValueError naming what is wrong.
    """
    load_entry_points()
    if name in _methods:
        return _methods[name]
    left, at, right = name.partition("@")
    (left, given), (right, trained) = spelling.parsed(left), spelling.parsed(right)
    if left not in _methods or not (at or given):
        raise unknown("method", left, _methods)
    base = _methods[left]
    if at and right not in _registered["trainings"]:
        raise unknown("training", right, _registered["trainings"])
    if at and base.training not in ("map", right):
        raise ValueError(f"'{name}': method '{left}' already trains with '{base.training}'; name its criterion '{base.criterion}'")
    planned = {"schedule": given.pop("schedule")} if "schedule" in given else {}
    made = replace(base, name=left, training=right or base.training, **_scheduled(**planned))
    if not at:  # a name without a training: what is no hyperparameter of the criterion is one of the training
        own = ranges(lookup("criteria", base.criterion))
        trained = {k: v for k, v in given.items() if k not in own}
        given = {k: v for k, v in given.items() if k in own}
    options = _options("criteria", made.criterion, {**base.options, **given})
    training_options = _options("trainings", made.training, {**base.training_options, **trained})
    made = replace(made, options=options, training_options=training_options)
    twin = next((m for m in _methods.values() if _identity(m) == _identity(made)), None)
    return twin or spelling.named(made, base, planned, _methods.values())


def _scheduled(schedule: str | None = None) -> dict[str, Any]:
    """The fields of a method under a schedule of that name; none where there is no name."""
    if schedule is None:
        return {}
    if schedule not in SCHEDULES:
        raise unknown("schedule", str(schedule), SCHEDULES)
    return {"schedule": SCHEDULES[schedule], "stage": SCHEDULES[schedule].stage}


def _options(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults, checked: canonical values, in the order of declaration."""
    made, plain = make(kind, name, options), make(kind, name, {})
    return {k: getattr(made, k) for k in ranges(made) if getattr(made, k) != getattr(plain, k)}


def lookup(kind: str, name: str) -> type[Configuration]:
    """The registered class of that kind and name."""
    load_entry_points()
    if name not in _registered[kind]:
        raise unknown({"criteria": "criterion", "granularities": "granularity"}.get(kind, kind[:-1]), name, _registered[kind])
    return _registered[kind][name]


def make(kind: str, name: str, hyperparameters: Mapping[str, Any]) -> Any:
    """An instance by kind, name and hyperparameters; ValueError naming the one that does not exist or is out of range."""
    cls = lookup(kind, name)
    for key in hyperparameters:
        if key not in ranges(cls):
            known = ", ".join(ranges(cls)) or "none"
            raise ValueError(f"'{name}' has no hyperparameter '{key}'{nearest(key, ranges(cls))}; it has: {known}")
    return cls(**hyperparameters)


def get_granularity(name: str) -> Granularity:
    """The granularity of that name: a registered one, with options in brackets (`channel(ranking=layer)`), or any pattern n:m.

    Raises ValueError naming what is wrong.
    """
    plain, options = spelling.parsed(name)
    n, colon, m = plain.partition(":")
    if colon and n.isdecimal() and m.isdecimal():
        plain, options = "2:4", {"n": int(n), "m": int(m), **options}
    made: Granularity = make("granularities", plain, options)
    return made


def load_entry_points() -> None:
    """Import, once, the modules that installed packages offer under the entry-point group `razorbench.methods`."""
    if ENTRY_POINTS in _loaded:
        return
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        point.load()
    _loaded.add(ENTRY_POINTS)


def load_plugin(path: str | Path) -> list[str]:
    """Import one file of registrations; returns the names it registered. A second call for the same file does nothing.

    Raises FileNotFoundError, or ValueError where the file cannot be imported or registers nothing.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no plug-in file {path}")
    module = f"razorbench_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module in sys.modules:
        return []
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"plug-in {path} is not a Python file")
    before = _snapshot()
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[module]
        _restore(before)
        raise ValueError(f"plug-in {path} cannot be imported: {type(error).__name__}: {error}") from error
    added = [name for kind, table in _registered.items() for name in table if name not in before[0][kind]]
    if not added and len(_methods) == len(before[1]):
        del sys.modules[module]
        raise ValueError(f"plug-in {path} registers nothing: use @methods.register('name') on a Criterion, Training or Granularity")
    return added + [name for name in _methods if name not in before[1] and name not in added]


def _snapshot() -> tuple[dict[str, dict[str, type[Configuration]]], dict[str, Method]]:
    return {kind: dict(table) for kind, table in _registered.items()}, dict(_methods)


def _restore(snapshot: tuple[dict[str, dict[str, type[Configuration]]], dict[str, Method]]) -> None:
    for kind, table in snapshot[0].items():
        _registered[kind] = dict(table)
    _methods.clear()
    _methods.update(snapshot[1])
