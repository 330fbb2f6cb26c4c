"""Names: what is registered, how names compose, and what a plug-in may and may not do to the table."""

import csv
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

import methods
from methods import Choice, Criterion, Float, Gradual, Int, Method, Problem, Regrowth, Scores, Stage, register
from methods.registry import registry
from methods.registry.registry import KINDS

configuration = dataclass(frozen=True, kw_only=True)

GOOD = '''
from dataclasses import dataclass
import methods

@methods.register("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(methods.Criterion):
    """s = w."""
    sign: float = methods.Float(1.0, -1.0, 1.0)
    def score(self, problem):
        return methods.Scores({{n: self.sign * w.detach() for n, w in problem.weights.items()}})
'''


@configuration
class Plain(Criterion):
    """s = w."""

    power: float = Float(1.0, 0.5, 2.0)

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.detach() for n, w in problem.weights.items()})


def twin() -> type[Plain]:
    return configuration(type("Twin", (Plain,), {"__doc__": "s = w."}))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    methods.names()  # entry points of this environment belong to the state to go back to
    before, modules = registry.snapshot(), set(sys.modules)
    yield
    registry.restore(before)
    for module in set(sys.modules) - modules:
        if module.startswith("razorbench_plugin_"):
            del sys.modules[module]


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "mine.py") -> Path:
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def state() -> tuple[list[list[str]], list[str]]:
    return [methods.names(kind) for kind in KINDS], methods.names()


# --- what is there


@pytest.mark.parametrize("name", methods.names("criteria"))
def test_every_criterion_is_a_method_at_its_first_stage_under_map(name: str) -> None:
    criterion = methods.lookup("criteria", name)
    schedule = Regrowth() if issubclass(criterion, methods.Regrowing) else None
    assert replace(methods.get(name), costly=False) == Method(name, name, "map", criterion.stages[0], schedule=schedule)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_can_be_made_and_may_stand_at_its_stage(name: str) -> None:
    method = methods.get(name)
    assert method.name == name
    criterion = method.make_criterion()
    assert isinstance(criterion, methods.lookup("criteria", method.criterion))
    assert method.stage in criterion.stages
    assert {k: getattr(criterion, k) for k in method.options} == dict(method.options)
    assert isinstance(method.make_training(), methods.lookup("trainings", method.training))


def test_the_named_methods() -> None:
    assert methods.get("spam") == Method("spam", "opd", "spam")
    assert methods.get("magnitude_layer").make_criterion() == methods.make("criteria", "magnitude", {"scope": "layer"})
    assert methods.get("snip_iterative").make_criterion() == methods.make("criteria", "snip", {"n_rounds": 100})
    initial = ("magnitude_init", "random_init", "snip", "snip_iterative", "grasp", "synflow")
    assert [methods.get(n).stage for n in initial] == [Stage.INIT] * len(initial)
    assert [methods.get(n).stage for n in ("magnitude", "random", "obd", "opd")] == [Stage.AFTER] * 4


def test_the_named_methods_that_prune_while_training() -> None:
    gradual, spam, online = (methods.get(n) for n in ("magnitude_gradual", "spam_gradual", "spam_online"))
    assert gradual.schedule == spam.schedule == Gradual(shape="cubic", start=0.0, begin=1 / 3, end=3 / 4, every=1)
    assert online.schedule == Gradual(shape="linear", start=0.1, begin=1 / 3, end=1.0, every=2, persistent=False)
    assert [m.stage for m in (gradual, spam, online)] == [Stage.DURING] * 3
    assert [(m.criterion, m.training) for m in (gradual, spam, online)] == [("magnitude", "map"), ("opd", "spam"), ("opd", "spam")]
    # What follows the burn-in of SpaM's prior is what is cut by it.
    begins = round(methods.make("trainings", "spam", {}).burn_in * 20)
    assert all(min(m.schedule.targets(20, 0.9)) >= begins for m in (spam, online) if m.schedule)


# --- registration


def test_a_registered_criterion_is_a_criterion_and_a_method() -> None:
    assert register("plain", costly=True)(Plain) is Plain
    assert Plain.name == "plain"
    assert methods.lookup("criteria", "plain") is Plain
    assert methods.get("plain") == Method("plain", "plain", stage=Stage.AFTER, costly=True)
    assert methods.names()[-1] == methods.names("criteria")[-1] == "plain"


def test_a_criterion_for_this_stage_only_is_a_method_with_the_default_schedule() -> None:
    gradual = dataclass(frozen=True, kw_only=True)(type("Gradual", (Plain,), {"__doc__": "Cut on the way.", "stages": (Stage.DURING,)}))
    register("gradual")(gradual)
    assert methods.get("gradual") == Method("gradual", "gradual", stage=Stage.DURING, schedule=Gradual())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": Stage.DURING}, "method 'm' prunes during training: it needs a schedule"),
        ({"schedule": Gradual()}, "method 'm': a schedule 'gradual' is for stage 'during', not 'after'"),
        ({"stage": Stage.INIT, "schedule": Gradual()}, "not 'init'"),
        ({"criterion": "opd", "stage": Stage.INIT}, "method 'm': criterion 'opd' is for stage after, during, not 'init'"),
    ],
)
def test_a_method_whose_parts_do_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method(**{"name": "m", "criterion": "magnitude", **fields})


def test_the_schedule_is_part_of_what_a_method_is() -> None:
    other = replace(methods.get("magnitude_gradual"), name="mine", schedule=Gradual(every=2))
    methods.define(other)
    with pytest.raises(ValueError, match="method 'again' is 'magnitude_gradual' under another name"):
        methods.define(replace(other, name="again", schedule=Gradual()))


def test_duplicates_raise_and_change_nothing() -> None:
    register("plain")(Plain)
    before = state()
    with pytest.raises(ValueError, match=r"register\('plain'\): the name is taken in criteria"):
        register("plain")(twin())
    with pytest.raises(ValueError, match=r"register\('magnitude_layer'\): the name is taken in criteria"):
        register("magnitude_layer")(twin())
    with pytest.raises(ValueError, match="method 'spam' is defined twice"):
        methods.define(Method("spam", "plain"))
    with pytest.raises(ValueError, match="method 'sparse' is 'spam' under another name"):
        methods.define(Method("sparse", "opd", "spam"))
    assert state() == before
    assert methods.lookup("criteria", "plain") is Plain


@pytest.mark.parametrize("name", ["", "Plain", "pla in", "a@b", "a-b", "_"])
def test_names_that_could_not_be_typed_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is lower-case letters, digits and underscores"):
        register(name)(twin())


@pytest.mark.parametrize(("name", "meaning"), [("dense", "the rows of unpruned networks"), ("all", "every method")])
def test_names_that_mean_something_else_are_refused(name: str, meaning: str) -> None:
    before = state()
    with pytest.raises(ValueError, match=rf"^register\('{name}'\): the name '{name}' is reserved for {meaning}$"):
        register(name)(twin())
    for full in (name, f"{name}@spam", f"{name}(lr=0.2)"):
        with pytest.raises(ValueError, match=rf"the name '{name}' is reserved for {meaning}$"):
            methods.define(Method(full, "magnitude", options={"scope": "erk"}))
    assert state() == before
    register(f"{name}_mine")(twin())
    assert methods.names()[-1] == f"{name}_mine", "a name may begin so"


def test_only_the_three_kinds_register() -> None:
    with pytest.raises(TypeError, match="neither a Criterion nor a Training nor a Granularity"):
        register("number")(int)  # type: ignore[type-var]


# --- composition


@pytest.mark.parametrize(
    ("composed", "name"),
    [("opd@spam", "spam"), ("magnitude@map", "magnitude"), ("spam@spam", "spam"), ("magnitude_layer@map", "magnitude_layer")],
)
def test_a_composition_that_equals_a_method_is_that_method(composed: str, name: str) -> None:
    assert methods.get(composed) is methods.get(name)


def test_other_compositions_take_all_but_the_training_from_the_left() -> None:
    assert methods.get("magnitude@spam") == Method("magnitude@spam", "magnitude", "spam")
    assert methods.get("magnitude_layer@spam") == Method("magnitude_layer@spam", "magnitude", "spam", options={"scope": "layer"})
    assert methods.get("snip@spam").stage == Stage.INIT
    gradual = methods.get("magnitude_gradual@spam")
    assert gradual == replace(methods.get("magnitude_gradual"), name="magnitude_gradual@spam", training="spam")
    assert "magnitude@spam" not in methods.names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spam@map", r"'spam@map': method 'spam' has the training 'spam'; use its criterion: 'opd@map'"),
        ("magnitud", r"unknown method 'magnitud' \(did you mean 'magnitude'\?\); available: .*grasp"),
        ("magnitud@spam", r"unknown method 'magnitud' \(did you mean 'magnitude'\?\)"),
        (
            "magnitude@spa",
            r"unknown training 'spa' \(did you mean 'spam'\?\); available: decoupled, dwf, group_lasso, l0, map, slimming, spam, str",
        ),
        ("magnitude@", r"unknown training ''; available: decoupled, dwf, group_lasso, l0, map, slimming, spam, str"),
        ("opd@spam@map", r"unknown training 'spam@map'"),
        ("qqq", r"unknown method 'qqq'; available: "),
    ],
)
def test_what_does_not_compose_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        methods.get(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("criteria", "snap", r"unknown criterion 'snap' \(did you mean 'snip'\?\)"),
        ("trainings", "spm", r"unknown training 'spm' \(did you mean 'spam'\?\)"),
        ("granularities", "weights", r"unknown granularity 'weights' \(did you mean 'weight'\?\)"),
    ],
)
def test_an_unknown_class_is_named_with_its_nearest(kind: str, name: str, message: str) -> None:
    with pytest.raises(methods.UnknownName, match=message):
        methods.lookup(kind, name)


# --- hyperparameters


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("criteria", "snip", {"n_batch": 2}, r"'snip' has no hyperparameter 'n_batch' \(did you mean 'n_batches'\?\); it has: n_batches"),
        ("granularities", "weight", {"scope": "layer"}, r"'weight' has no hyperparameter 'scope'; it has: none"),
        ("criteria", "snip", {"n_batches": 0}, r"n_batches=0 is not an integer >= 1"),
        ("criteria", "snip", {"n_batches": 2.0}, r"n_batches=2.0 is not an integer >= 1"),
        ("criteria", "grasp", {"temperature": float("nan")}, r"temperature=nan is not a finite number > 0"),
        ("criteria", "grasp", {"temperature": True}, r"temperature=True is not a finite number > 0"),
        ("criteria", "magnitude", {"scope": "filter"}, r"scope='filter' is not one of global, layer, lamp, erk"),
        ("trainings", "map", {"weight_decays": 0.1}, r"did you mean 'weight_decay'\?\); it has: lr, weight_decay"),
        ("trainings", "spam", {"lr": "fast"}, r"lr='fast' is not a finite number > 0"),
    ],
)
def test_a_wrong_hyperparameter_is_named_with_what_is_allowed(kind: str, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        methods.make(kind, name, options)
    assert "\n" not in str(error.value)


HYPERPARAMETERS = [
    (kind, name, key) for kind in KINDS for name in methods.names(kind) for key in methods.ranges(methods.lookup(kind, name))
]


def numbers_of(kind: str, name: str, key: str) -> list[float]:
    """A whole number and a broken one in the range of a hyperparameter, where there are."""
    allowed = methods.ranges(methods.lookup(kind, name))[key]
    if allowed.choices or allowed.text:
        return []
    most = 10 if (name, key) == ("spam", "weight_decay") else 1000  # that of spam is bounded by its learning rate
    whole = [v for v in (0, 1, 2, 3, 4, 10, 300, 1000) if v in allowed and v <= most]
    return [*whole[-2:], *([0.5] if 0.5 in allowed and not allowed.integer else [])]


@pytest.mark.parametrize(("kind", "name", "key"), HYPERPARAMETERS)
def test_a_number_is_one_value_however_it_is_given(kind: str, name: str, key: str) -> None:
    """2, 2.0 and 2e0, typed or passed in Python, from numpy too: one configuration, one JSON, one name."""
    allowed, real = methods.ranges(methods.lookup(kind, name))[key], float
    for value in numbers_of(kind, name, key):
        other = {"m": 2000} if key == "n" else {"n": 1} if key == "m" else {}  # a pattern n:m needs n < m
        if allowed.integer:
            given, wanted = [value, np.int64(value)], int(value)
            with pytest.raises(ValueError, match=rf"{key}={real(value)} is not an integer"):
                methods.make(kind, name, {**other, key: real(value)})
        else:
            given, wanted = [value, real(value), np.float64(value), *([int(value)] if value == int(value) else [])], real(value)
        made = [methods.make(kind, name, {**other, key: v}) for v in given]
        assert {repr(m) for m in made} == {repr(made[0])}
        assert json.dumps(getattr(made[0], key)) == json.dumps(wanted)
        if kind != "granularities":
            method = name if kind == "criteria" else f"magnitude@{name}"
            texts = {str(value), repr(wanted), *([] if allowed.integer else [f"{value:e}", f" {value!r} "])}
            found = [methods.get(f"{method}({key}={text})") for text in texts if float(text) == value]
            assert len({m.name for m in found}) == 1
            assert repr(found[0].make_criterion() if kind == "criteria" else found[0].make_training()) == repr(made[0])


def test_the_name_says_the_value_as_it_is_kept() -> None:
    assert methods.get("opd(precision=2)").name == methods.get("opd(precision=2.0)").name == "opd(precision=2.0)"
    assert methods.get("opd(precision=1e1)").name == "opd(precision=10.0)"
    assert methods.get("opd(precision=1)") is methods.get("opd")
    assert methods.get("spam(burn_in=-0.0)").name == "spam(burn_in=0.0)"
    assert methods.get("snip(n_batches=2)").name == "snip(n_batches=2)"
    with pytest.raises(ValueError, match=r"Snip: n_batches=2.0 is not an integer"):
        methods.get("snip(n_batches=2e0)")
    with pytest.raises(ValueError, match=r"Opd: precision=1000+ is not a finite number >= 0"):
        methods.get("opd(precision=1" + "0" * 400 + ")")
    with pytest.raises(ValueError, match="precision is given twice"):
        methods.get("opd(precision=2,precision=3)")


def test_numbers_among_choices_are_the_choice_itself() -> None:
    @configuration
    class Picky(Plain):
        """s = w."""

        rate: float = Choice(1, 1, 2.5, "none", True)

    register("picky")(Picky)
    assert [repr(Picky(rate=v).rate) for v in (1, 1.0, 2.5, "none", True)] == ["1", "1", "2.5", "'none'", "True"]
    assert methods.get("picky(rate=2.50)").name == "picky(rate=2.5)"
    assert methods.get("picky(rate=1.0)") is methods.get("picky")
    with pytest.raises(ValueError, match=r"rate=2 is not one of 1, 2.5, none, True"):
        Picky(rate=2)


def test_what_prune_is_given_is_kept_alike(batches: list[tuple[Tensor, Tensor]], mlp: Callable[..., nn.Sequential]) -> None:
    seen: list[str] = []

    @configuration
    class Telling(Plain):
        """s = w."""

        def score(self, problem: Problem) -> Scores:
            seen.append(repr(self))
            return super().score(problem)

    register("telling")(Telling)
    for power in (2, 2.0):
        methods.prune(mlp(), batches, method="telling", sparsity=0.5, power=power)
    methods.prune(mlp(), batches, method="telling(power=2)", sparsity=0.5)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def spellings() -> Iterator[str]:
    """Every registered method with one or two options of its criterion and its training, in either order, and under each training."""
    for name in methods.names():
        method = methods.get(name)
        options = []
        for kind, of in (("criteria", method.criterion), ("trainings", method.training)):
            for key, allowed in methods.ranges(methods.lookup(kind, of)).items():
                value = allowed.choices[-1] if allowed.choices else (numbers_of(kind, of, key) or [0.5])[0]
                options.append(f"{key}={value}")
        for first, second in zip(options, options[1:] + options[:1], strict=True):
            yield from (f"{name}({first})", f"{name}({first},{second})", f"{name}({second},{first})")
        for training in methods.names("trainings"):
            yield from (f"{name}@{training}", f"{name}@{training}(lr=0.5)", f"{name}({options[0]})@{training}(lr=0.5)")
            if training == "spam":
                yield from (f"{name}@spam(curvature=ef,prior=layer)", f"{name}@spam(prior=layer,weight_decay=0.01)")
        yield from (f"{name}(schedule={schedule})" for schedule in registry.SCHEDULES)


def test_one_thing_has_one_name_and_the_name_means_it() -> None:
    names: dict[object, set[str]] = {}
    tried = 0
    for text in spellings():
        try:
            method = methods.get(text)
        except ValueError:
            continue  # what does not go together
        tried += 1
        assert methods.get(method.name) == method, text
        key = (
            method.stage, method.schedule, method.training, repr(method.make_criterion()), repr(method.make_training()),
        )  # fmt: skip
        names.setdefault(key, set()).add(method.name)
    assert tried > 500
    assert {key: found for key, found in names.items() if len(found) > 1} == {}
    assert methods.get("magnitude(scope=layer)@spam").name == "magnitude_layer@spam"
    assert methods.get("opd@spam(weight_decay=0.01)").name == methods.get("spam(weight_decay=1e-2)").name == "spam(weight_decay=0.01)"
    assert methods.get("spam@spam(curvature=ef)").name == "opd@spam(curvature=ef)", "a criterion and its training both have it"


def test_a_method_of_another_stage_that_fixes_an_option_says_the_default() -> None:
    """Nothing registered is at initialisation with another scope: the name goes by what was typed, and says what is not as there."""
    register("plain")(type("Plain", (Plain,), {"__doc__": "s = w.", "stages": (Stage.AFTER, Stage.INIT)}))
    methods.define(Method("strong_init", "plain", stage=Stage.INIT, options={"power": 2}))
    found = methods.get("strong_init(power=1)")
    assert (found.name, found.stage, dict(found.options)) == ("strong_init(power=1.0)", Stage.INIT, {})
    assert methods.get(found.name) == found
    assert methods.get("strong_init(power=2.0)") is methods.get("strong_init")


def test_names_that_are_published_are_spelled_so() -> None:
    boards = Path(__file__).resolve().parents[3] / "leaderboards"
    published = {row["method"] for file in boards.glob("*/results/*.csv") for row in csv.DictReader(file.open()) if row["criterion"]}
    assert len(published) > 20
    assert {name: methods.get(name).name for name in published if methods.get(name).name != name} == {}


def test_a_value_outside_the_search_range_is_allowed_and_one_outside_the_limits_is_not() -> None:
    """Tuning draws `power` from [0.5, 2]; the limits are (0, 8]."""

    @configuration
    class Limited(Plain):
        """s = w."""

        power: float = Float(1.0, 0.5, 2.0, above=0, maximum=8)

    for value in (1e-9, 0.5, 1, 2.01, 8.0):
        assert Limited(power=value).power == value
    for value in (0.0, -1.0, 8.01, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"Limited: power={value} is not a number in \(0, 8\]"):
            Limited(power=value)
    searched = methods.ranges(Limited)["power"].searched
    assert (searched.low, searched.high, 2.01 in searched) == (0.5, 2.0, False)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Float(1.0, 0.0, 2.0, above=0), r"contains 0\.0, which is not a finite number > 0"),
        (lambda: Int(1, 1, 20, maximum=10), "contains 20, which is not an integer <= 10"),
        (lambda: Float(1.0, 0.5), "needs low and high"),
        (lambda: Float(1.0, minimum=0, above=0), "not both"),
    ],
)
def test_limits_that_contradict_the_search_range_are_refused(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare()


def test_without_limits_every_finite_number_is_allowed_and_without_a_search_range_nothing_is_tuned() -> None:
    @configuration
    class Free(Plain):
        """s = w."""

        a: float = Float(1.0)
        b: int = Int(1, minimum=1)
        c: float = Float(1.0, maximum=2)

    allowed = methods.ranges(Free)
    assert [key for key, own in allowed.items() if own.tuned] == ["power"]
    assert (-1e300 in allowed["a"], float("inf") in allowed["a"], 10**400 in allowed["b"]) == (True, False, False)
    assert [str(allowed[k]) for k in "abc"] == ["a finite number", "an integer >= 1", "a finite number <= 2"]


def test_an_option_fixed_by_the_name_cannot_be_asked_to_differ() -> None:
    with pytest.raises(ValueError, match="scope"):
        methods.get("magnitude_layer").make_criterion(scope="erk")


# --- plug-in files


def test_a_plugin_registers_once_and_a_second_load_does_nothing(plugin: Callable[..., Path]) -> None:
    file = plugin(GOOD.format(name="mine"))
    assert methods.load_plugin(file) == ["mine"]
    assert methods.make("criteria", "mine", {"sign": -1.0}).sign == -1.0
    after = state()
    assert methods.load_plugin(str(file)) == []
    assert state() == after


def test_a_plugin_may_define_named_methods_too(plugin: Callable[..., Path]) -> None:
    file = plugin(GOOD.format(name="mine") + '\nmethods.define(methods.Method("mine_too", "mine", options={"sign": -1.0}))\n')
    assert methods.load_plugin(file) == ["mine", "mine_too"]
    assert methods.get("mine_too").make_criterion().sign == -1.0


def test_a_plugin_may_only_define_named_methods(plugin: Callable[..., Path]) -> None:
    file = plugin('import methods\nmethods.define(methods.Method("snip_spam", "snip", "spam", methods.Stage.INIT))\n')
    assert methods.load_plugin(file) == ["snip_spam"]
    assert methods.get("snip@spam") is methods.get("snip_spam")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.format(name="mine") + "\n1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
        (GOOD.format(name="mine") + GOOD.format(name="magnitude"), "the name is taken in criteria"),
        ("import methods_that_nobody_wrote\n", "ModuleNotFoundError"),
    ],
)
def test_a_broken_plugin_leaves_the_registry_as_it_was(plugin: Callable[..., Path], text: str, message: str) -> None:
    before, modules = state(), set(sys.modules)
    file = plugin(text)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"plug-in .*mine\.py .*{message}"):
            methods.load_plugin(file)
    assert state() == before
    assert not {m for m in set(sys.modules) - modules if m.startswith("razorbench_plugin_")}
    plugin(GOOD.format(name="mine"))
    assert methods.load_plugin(file) == ["mine"]


def test_a_file_that_registers_nothing_is_refused(plugin: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"mine\.py registers nothing: use @methods\.register"):
        methods.load_plugin(plugin("import methods\n"))


def test_a_file_that_registers_nothing_is_refused_again_and_loaded_once_mended(plugin: Callable[..., Path]) -> None:
    file = plugin("import methods\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="registers nothing"):
            methods.load_plugin(file)
    plugin(GOOD.format(name="mine"))
    assert methods.load_plugin(file) == ["mine"]


def test_what_is_no_python_file_is_refused(plugin: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no plug-in file .*absent\.py"):
        methods.load_plugin(tmp_path / "absent.py")
    with pytest.raises(FileNotFoundError, match="no plug-in file"):
        methods.load_plugin(tmp_path)
    with pytest.raises(ValueError, match=r"mine\.txt is not a Python file"):
        methods.load_plugin(plugin(GOOD.format(name="mine"), "mine.txt"))


def test_plugins_of_the_same_name_in_two_folders_are_two(plugin: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert methods.load_plugin(plugin(GOOD.format(name="mine"))) == ["mine"]
    assert methods.load_plugin(plugin(GOOD.format(name="other"), "other/mine.py")) == ["other"]


# --- entry points


class EntryPoint:
    """What an installed package offers: loading it registers a criterion."""

    def __init__(self, load: Callable[[], object]) -> None:
        self.load = load


def offer(monkeypatch: pytest.MonkeyPatch, load: Callable[[], object]) -> list[str]:
    """Pretend that a package with this entry point is installed, and that nothing was loaded yet; returns the groups asked for."""
    asked: list[str] = []

    def entry_points(*, group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint(load)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry.restore(registry.snapshot()._replace(loaded=frozenset()))
    return asked


@pytest.mark.parametrize(
    "use", [methods.names, lambda: methods.get("offered"), lambda: methods.lookup("criteria", "offered")], ids=["names", "get", "lookup"]
)
def test_entry_points_are_loaded_once_by_whoever_asks_first(monkeypatch: pytest.MonkeyPatch, use: Callable[[], object]) -> None:
    asked = offer(monkeypatch, lambda: register("offered")(twin()))
    use()
    use()
    assert "offered" in methods.names()
    assert asked == ["razorbench.methods"]


def test_a_broken_entry_point_is_reported_to_every_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("no such library")

    offer(monkeypatch, load)
    for _ in range(2):
        with pytest.raises(Exception, match="no such library"):
            methods.names()


# --- the source of a method


def test_each_registered_class_has_a_hash_of_its_own() -> None:
    hashes = {methods.source_hash(methods.lookup(kind, name)) for kind in KINDS for name in methods.names(kind)}
    assert "" not in hashes
    assert len(hashes) == sum(len(methods.names(kind)) for kind in KINDS)
