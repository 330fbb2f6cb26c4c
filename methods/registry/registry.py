"""The registry: criteria, trainings, granularities and methods by name, and composition (`criterion@training`)."""

import difflib
import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from methods.core.configurations import Configuration, Criterion, Granularity, Training
from methods.core.hyperparameters import ranges
from methods.core.interface import Stage
from methods.core.regrowth import Regrowing, check_schedule
from methods.core.schedule import Gradual, Regrowth, Schedule
from methods.registry import spelling

ENTRY_POINTS = "razorbench.methods"
KINDS: dict[str, type[Configuration]] = {"criteria": Criterion, "trainings": Training, "granularities": Granularity}
_registered: dict[str, dict[str, type[Configuration]]] = {kind: {} for kind in KINDS}
_methods: dict[str, "Method"] = {}
SCHEDULES: dict[str, Schedule] = {}  # name -> schedule of `criterion(schedule=name)`
RESERVED = {"dense": "the rows of unpruned networks", "all": "every method"}  # names with another meaning on the command line
_loaded: set[str] = set()
C = TypeVar("C", bound=type[Configuration])


class UnknownName(ValueError):
    """A name that is not registered. The message contains it, the closest match and the registered names."""


@dataclass(frozen=True)
class Method:
    """A pruning method: a criterion with options, a training, and the stage at which the criterion is applied.

    Attributes:
        name: its name on the leaderboard.
        criterion: name of the criterion.
        training: name of the training.
        stage: when weights are removed.
        options: hyperparameters of the criterion that the name fixes; they are never tuned.
        training_options: the same for the training.
        costly: whether the method is left out unless it is requested by name.
        schedule: when to cut, in several steps; required at stage DURING, optional at stage AFTER.

    Raises:
        ValueError: if the schedule is missing or is for another stage, or the criterion does not allow the stage.
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
            raise ValueError(f"method '{self.name}' prunes during training: it needs a schedule")
        if self.schedule is not None and self.stage != self.schedule.stage:
            raise ValueError(
                f"method '{self.name}': a schedule '{self.schedule.kind}' is for stage '{self.schedule.stage}', not '{self.stage}'"
            )
        cls = _registered["criteria"].get(self.criterion)
        if cls is not None and issubclass(cls, Criterion):
            if self.stage not in cls.stages:
                allowed = ", ".join(cls.stages)
                raise ValueError(f"method '{self.name}': criterion '{self.criterion}' is for stage {allowed}, not '{self.stage}'")
            check_schedule(cls, self.schedule)

    def make_criterion(self, **hyperparameters: Any) -> Criterion:
        """The criterion with this method's options and the given hyperparameters.

        Raises:
            ValueError: if a hyperparameter does not exist, is outside its limits, or is fixed to another value by the name.
        """
        made: Criterion = make("criteria", self.criterion, self._with(hyperparameters, self.options))
        return made

    def make_training(self, **hyperparameters: Any) -> Training:
        """The training with this method's options and the given hyperparameters; raises as `make_criterion` does."""
        made: Training = make("trainings", self.training, self._with(hyperparameters, self.training_options))
        return made

    def _with(self, asked: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in fixed.items():
            if asked.get(name, value) != value:
                raise ValueError(f"'{self.name}' fixes {name}={value!r}; {name}={asked[name]!r} is another method")
        return {**asked, **fixed}


def nearest(name: str, options: Iterable[str]) -> str:
    """' (did you mean X?)' for the option closest to a misspelt name; '' if none is close."""
    match = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def unknown(kind: str, name: str, options: Iterable[str]) -> UnknownName:
    """The error for a name that is not among the options; `kind` says what it should name."""
    options = list(options)
    return UnknownName(f"unknown {kind} '{name}'{nearest(name, options)}; available: {', '.join(options)}")


def register(name: str, *, costly: bool = False) -> Callable[[C], C]:
    """Class decorator that registers a Criterion, a Training or a Granularity.

    A criterion becomes a method too, with training `map`, at its first stage (DURING: under `Gradual`, or `Regrowth` if it regrows).

    Args:
        name: lower-case letters, digits and underscores (or a pattern n:m).
        costly: whether the method is left out unless it is requested by name.

    Raises:
        ValueError: if the name is taken, reserved or malformed.
        TypeError: if the class is not a Criterion, a Training or a Granularity.
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
            during = Regrowth() if issubclass(cls, Regrowing) else Gradual()
            define(Method(name, name, stage=stage, costly=costly, schedule=during if stage == Stage.DURING else None))
        return cls

    return add


def define(method: Method) -> None:
    """Add a named method; raises ValueError if the name is taken or reserved, or the same method exists under another name."""
    _refuse_reserved(f"method '{method.name}'", method.name)
    if method.name in _methods:
        raise ValueError(f"method '{method.name}' is defined twice")
    twin = next((m.name for m in _methods.values() if _identity(m) == _identity(method)), None)
    if twin is not None:
        raise ValueError(f"method '{method.name}' is '{twin}' under another name")
    _methods[method.name] = method


def _refuse_reserved(what: str, name: str) -> None:
    """Raise ValueError if a name, without its training and options, is reserved."""
    plain = name.partition("@")[0].partition("(")[0].strip()
    if plain in RESERVED:
        raise ValueError(f"{what}: the name '{plain}' is reserved for {RESERVED[plain]}")


def _identity(m: Method) -> tuple[Any, ...]:
    return m.criterion, m.training, m.stage, m.schedule, tuple(sorted(m.options.items())), tuple(sorted(m.training_options.items()))


def names(kind: str = "methods") -> list[str]:
    """The registered names of a kind ("methods", "criteria", "trainings" or "granularities"), in order of registration."""
    load_entry_points()
    return list(_methods if kind == "methods" else _registered[kind])


def get(name: str) -> Method:
    """Find or compose a method by name.

    Args:
        name: a registered name, or `criterion@training`, with hyperparameters in brackets, before `@` of the criterion, after `@` of the
            training, without `@` of either: `magnitude(weight_decay=0.005)`, `opd(form=eigenbasis)@spam(prior=layer)`; or with a
            schedule of `SCHEDULES`: `obd(schedule=iterative)`.

    Returns:
        The method under its canonical name: that of an equal registered method, or with the options that are not the defaults.

    Raises:
        ValueError: if the name cannot be read, or a part of it does not exist or is not allowed.
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
        raise ValueError(f"'{name}': method '{left}' has the training '{base.training}'; use its criterion: '{base.criterion}@{right}'")
    planned = {"schedule": given.pop("schedule")} if "schedule" in given else {}
    made = replace(base, name=left, training=right or base.training, **_scheduled(**planned))
    if not at:  # without a training in the name: options that the criterion does not have are those of the training
        own = ranges(lookup("criteria", base.criterion))
        trained = {k: v for k, v in given.items() if k not in own}
        _check_keys(base.name, trained, {**own, **ranges(lookup("trainings", made.training))})
        given = {k: v for k, v in given.items() if k in own}
    options = _options("criteria", made.criterion, {**base.options, **given})
    training_options = _options("trainings", made.training, {**base.training_options, **trained})
    made = replace(made, options=options, training_options=training_options)
    twin = next((m for m in _methods.values() if _identity(m) == _identity(made)), None)
    return twin or spelling.named(made, base, planned, _methods.values())


def _check_keys(name: str, keys: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError if one of the keys is not a known hyperparameter of this name."""
    for key in keys:
        if key not in known:
            raise ValueError(f"'{name}' has no hyperparameter '{key}'{nearest(key, known)}; it has: {', '.join(known) or 'none'}")


def _scheduled(schedule: str | None = None) -> dict[str, Any]:
    """The fields that a schedule, by its name, sets in a method; none without a schedule."""
    if schedule is None:
        return {}
    if schedule not in SCHEDULES:
        raise unknown("schedule", str(schedule), SCHEDULES)
    return {"schedule": SCHEDULES[schedule], "stage": SCHEDULES[schedule].stage}


def _options(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options that differ from the defaults, as canonical values in the order of declaration."""
    made, plain = make(kind, name, options), make(kind, name, {})
    return {k: getattr(made, k) for k in ranges(made) if getattr(made, k) != getattr(plain, k)}


def lookup(kind: str, name: str) -> type[Configuration]:
    """The registered class by kind and name; raises UnknownName."""
    load_entry_points()
    if name not in _registered[kind]:
        raise unknown({"criteria": "criterion", "granularities": "granularity"}.get(kind, kind[:-1]), name, _registered[kind])
    return _registered[kind][name]


def make(kind: str, name: str, hyperparameters: Mapping[str, Any]) -> Any:
    """Make a criterion, training or granularity.

    Args:
        kind: "criteria", "trainings" or "granularities".
        name: its registered name.
        hyperparameters: values by name; the others have their defaults.

    Raises:
        ValueError: if the name or a hyperparameter does not exist, or a value is outside its limits.
    """
    cls = lookup(kind, name)
    _check_keys(name, hyperparameters, ranges(cls))
    return cls(**hyperparameters)


def get_granularity(name: str) -> Granularity:
    """Make a granularity by name.

    Args:
        name: a registered name, with options in brackets (`channel(ranking=layer)`), or a pattern n:m.

    Raises:
        ValueError: if there is no such granularity or option.
    """
    plain, options = spelling.parsed(name)
    n, colon, m = plain.partition(":")
    if colon and spelling.INTEGER.fullmatch(n) and spelling.INTEGER.fullmatch(m):
        plain, options = "2:4", {"n": int(n), "m": int(m), **options}
    made: Granularity = make("granularities", plain, options)
    return made


def load_entry_points() -> None:
    """Import once the modules of installed packages that are entry points of the group `razorbench.methods`."""
    if ENTRY_POINTS in _loaded:
        return
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        point.load()
    _loaded.add(ENTRY_POINTS)


class State(NamedTuple):
    """The content of the registry: `tables`: kind -> name -> class; `methods`: name -> method; `loaded`: entry-point groups."""

    tables: dict[str, dict[str, type[Configuration]]]
    methods: dict[str, Method]
    loaded: frozenset[str]


def snapshot() -> State:
    """A copy of the content of the registry, for `restore`."""
    return State({kind: dict(table) for kind, table in _registered.items()}, dict(_methods), frozenset(_loaded))


def restore(state: State) -> None:
    """Set the registry back to a snapshot."""
    for kind, table in state.tables.items():
        _registered[kind] = dict(table)
    _methods.clear()
    _methods.update(state.methods)
    _loaded.clear()
    _loaded.update(state.loaded)
