"""The recipe: schedules of the learning rate by formula, optimisers, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import methods
from methods import Recipe

# Fractions of all steps -> factors, with a warm-up of a tenth, by hand.
FACTORS = {
    "cosine": {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.325: 0.5 * (1 + math.sqrt(0.5)), 0.55: 0.5, 1.0: 0.0},
    "linear": {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 0.91: 0.1, 1.0: 0.0},
    "constant": {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 1.0, 1.0: 1.0},
    "step": {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.49: 1.0, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 1.0: 0.01},
}


@pytest.mark.parametrize(("schedule", "factors"), FACTORS.items(), ids=FACTORS)
def test_the_learning_rate_has_the_factors_of_its_schedule(schedule: str, factors: dict[float, float]) -> None:
    recipe = Recipe(epochs=1, schedule=schedule)
    assert [recipe.factor(p) for p in factors] == pytest.approx(list(factors.values()))
    assert Recipe(epochs=1, warmup=0.0, schedule=schedule).factor(0.0) == 1.0


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.15), ("adam", 0.0015), ("adamw", 0.0015)])
def test_the_recipe_scales_the_trainings_learning_rate(optimizer: str, lr: float) -> None:
    made = Recipe(epochs=1, optimizer=optimizer, lr_scale=0.5).make([nn.Parameter(torch.ones(2))], 0.3)
    assert made.param_groups[0]["lr"] == pytest.approx(lr)  # half of 0.3, and a hundredth of that for Adam
    assert made.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer 'lion' is not one of sgd, adam, adamw"),
        ({"epochs": -1}, "-1"),
        ({"schedule": "cosin"}, "lr_schedule 'cosin' is not one of cosine, linear, constant, step"),
        ({"precision": "half"}, "precision 'half' is not one of full, bfloat16"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, **options})


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_adamw_takes_trainings_that_decouple_weight_decay_only(training: str) -> None:
    made = methods.make("trainings", training, {})
    if training == "decoupled":
        Recipe(epochs=1, optimizer="adamw").check(made)
    else:
        with pytest.raises(ValueError, match=f"'{training}' has it in the loss: use training='decoupled'"):
            Recipe(epochs=1, optimizer="adamw").check(made)
    for optimizer in ("sgd", "adam"):
        Recipe(epochs=1, optimizer=optimizer).check(made)
