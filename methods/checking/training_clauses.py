"""The checks of a training: that it trains, keeps masked weights at zero, and leaves a valid posterior."""

from collections.abc import Callable
from typing import Any

import torch

from methods.checking.fixtures import Skip, problem_of, require, same, weight
from methods.core.configurations import Training
from methods.core.cutting import cut
from methods.core.interface import Posterior, Problem
from methods.core.masks import mask_holds
from methods.core.modes import evaluating
from methods.core.recipe import Recipe
from methods.core.training_loop import fit
from methods.registry.registry import lookup


def _fitted(entry: type[Training], *, epochs: int = 6, cut_half: bool = False) -> tuple[Problem, Posterior]:
    problem = problem_of(trained=False)
    if cut_half:
        problem.mask = cut(problem, lookup("criteria", "magnitude")(), weight(), 0.5)  # type: ignore[arg-type]
    return problem, fit(problem, entry(), Recipe(epochs=epochs))


def _loss(problem: Problem) -> float:
    with torch.no_grad(), evaluating(problem.model):
        return sum(float(problem.loss(problem.model(x), y)) for x, y in problem.batches)


def _learns(entry: type[Training]) -> None:
    before = _loss(problem_of(trained=False))
    after = _loss(_fitted(entry)[0])
    require(after < before, f"the training loss must decrease; it was {before:.4g} before and {after:.4g} after training")


def _names_kept(entry: type[Training]) -> None:
    fresh, (problem, _) = problem_of(trained=False), _fitted(entry)
    wanted = {n: p.shape for n, p in fresh.model.state_dict().items()}
    require(
        {n: p.shape for n, p in problem.model.state_dict().items()} == wanted, "parameter names and shapes must be the same after training"
    )


def _masks_hold(entry: type[Training]) -> None:
    problem, posterior = _fitted(entry, cut_half=True)
    require(mask_holds(problem.model, problem.mask), "masked weights must be zero after training")
    fit(problem, entry(), Recipe(epochs=2, optimizer="adam"), previous=posterior)
    require(mask_holds(problem.model, problem.mask), "masked weights must be zero after fine-tuning")


def _training_repeats(entry: type[Training]) -> None:
    (first, a), (second, b) = _fitted(entry), _fitted(entry)
    require(same(first.model.state_dict(), second.model.state_dict()), "the same seed must give the same weights")
    require(same(a.prior, b.prior) and same(a.curvature, b.curvature), "the same seed must give the same posterior")


def _posterior_is_sound(entry: type[Training]) -> None:
    problem, posterior = _fitted(entry)
    require(isinstance(posterior, Posterior), f"finish must return a Posterior, not {type(posterior).__name__}")
    shapes = {n: p.shape for n, p in problem.model.named_parameters()}
    for name, value in [*posterior.prior.items(), *posterior.curvature.items()]:
        require(name in shapes, f"the posterior contains '{name}', which is not a parameter")
        require(bool(value.isfinite().all() and (value >= 0).all()), f"the posterior of '{name}' must be finite and not negative")
        shape = tuple(value.shape)
        require(shape in ((), tuple(shapes[name])), f"the posterior of '{name}' must be a scalar or have its shape, not {shape}")


def _penalty_is_sound(entry: type[Training]) -> None:
    fresh, (problem, finished) = problem_of(trained=False), _fitted(entry)
    states = (fresh, entry().prepare(fresh)), (problem, finished)  # in training, and while fine-tuning
    values = [entry().penalty(dict(p.model.named_parameters()), state) for p, state in states]
    if values == [None, None]:
        raise Skip("has no penalty other than its Gaussian prior")
    for value in values:
        sound = value is None or (value.dim() == 0 and bool(value.isfinite() and value >= 0))
        require(sound, "penalty must return a finite scalar >= 0")


TRAINING: dict[str, Callable[[Any], None]] = {
    "the training loss decreases": _learns,
    "parameter names and shapes stay the same": _names_kept,
    "masked weights stay zero in training and fine-tuning": _masks_hold,
    "the same seed gives the same network": _training_repeats,
    "the posterior is finite, not negative and has the names of the parameters": _posterior_is_sound,
    "the penalty is finite and not negative": _penalty_is_sound,
}
