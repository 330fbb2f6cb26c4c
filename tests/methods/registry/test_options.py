"""`methods.describe`: what may be written in the brackets of a method's name, with its default under that name."""

import pytest

import methods
from methods import Method, Option
from methods.registry import registry


def described(method: str) -> dict[tuple[str, str], Option]:
    """(part, name) -> option."""
    return {(option.part, option.name): option for option in methods.describe(method)}


def test_the_options_of_magnitude() -> None:
    assert methods.describe("magnitude")[:3] == [
        Option("criterion", "scope", "global", False, "one of global, layer, lamp, erk, row", "global, layer, lamp, erk",
               "how scores of different layers are compared"),
        Option("training", "lr", 0.1, False, "a finite number > 0", "[0.03, 0.3] (log scale)", "peak learning rate of SGD with momentum"),
        Option("training", "weight_decay", 1e-3, False, "a finite number >= 0", "[1e-05, 0.02] (log scale)",
               "coefficient of the L2 penalty: ½ · weight_decay · ‖θ‖²"),
    ]  # fmt: skip


def test_defaults_are_those_of_the_name_and_what_it_fixes_is_not_searched() -> None:
    options = described("magnitude_layer@spam(weight_decay=0.003,prior=unit)")
    assert {key: option.default for key, option in options.items() if option.fixed} == {
        ("criterion", "scope"): "layer",
        ("training", "weight_decay"): 0.003,
        ("training", "prior"): "unit",
    }
    assert all(option.searched == "" for option in options.values() if option.fixed)
    assert options["training", "structure"].searched == "", "another value is another method"
    assert options["training", "frequency"].searched == "[1, 20] (log scale)"
    assert described("magnitude(weight_decay=0.003)")["training", "weight_decay"].default == 0.003


def test_an_option_of_criterion_and_training_is_listed_for_both() -> None:
    options = described("obd@spam(curvature=ggn)")
    assert options["criterion", "curvature"].default == "ef"
    assert options["training", "curvature"].default == "ggn"


@pytest.mark.parametrize(
    ("method", "default"), [("magnitude", None), ("obd(schedule=iterative)", "iterative"), ("imp", "rewinding"), ("spam_online", "online")]
)
def test_the_schedule_is_an_option_too(method: str, default: str | None) -> None:
    option = described(method)["schedule", "schedule"]
    assert (option.default, option.fixed) == (default, default is not None)
    for name in option.allowed.removeprefix("one of ").split(", "):
        assert methods.get(f"magnitude(schedule={name})").schedule is not None


@pytest.mark.parametrize("name", methods.names())
def test_what_is_described_can_be_written_and_nothing_else(name: str) -> None:
    """Every option may be written with its own default; every one of ours says what it means; a name that is missing is refused."""
    method = methods.get(name)
    options = methods.describe(name)
    assert all(option.meaning for option in options)
    for option in options:
        if option.part == "criterion":
            assert methods.get(f"{name}({option.name}={option.default})") == method
        elif option.part == "training":
            assert methods.get(f"{name}@{method.training}({option.name}={option.default})") == method
    with pytest.raises(ValueError, match="has no hyperparameter 'nothing'"):
        methods.get(f"{name}(nothing=1)")


def test_a_schedule_of_ones_own_is_named_by_its_kind() -> None:
    before = registry.snapshot()
    try:
        methods.define(Method("mine", "magnitude", stage=methods.Stage.DURING, schedule=methods.Gradual(every=3)))
        assert described("mine")["schedule", "schedule"].default == "gradual"
    finally:
        registry.restore(before)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(methods.UnknownName, match=r"unknown method 'magnitud' \(did you mean 'magnitude'\?\)"):
        methods.describe("magnitud")


def test_criteria_that_regrow_have_no_choice_of_schedules() -> None:
    assert {option.name for option in methods.describe("rigl")} == {"fraction", "updates", "until", "start", "lr", "weight_decay"}


def test_a_mistyped_option_is_named_with_those_of_criterion_and_training() -> None:
    known = "fraction, updates, until, start, lr, weight_decay"
    with pytest.raises(ValueError, match=rf"^'rigl' has no hyperparameter 'fractoin' \(did you mean 'fraction'\?\); it has: {known}$"):
        methods.get("rigl(fractoin=0.1)")
