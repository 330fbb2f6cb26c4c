"""The calls for anybody's own code: `train`, `prune`, `compact`, `train_pruned`, `scores`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import nn

from methods.core.configurations import Criterion, Training
from methods.core.cutting import Pruner, cut, score
from methods.core.interface import Batches, Loss, Mask, Posterior, Problem, Stage
from methods.core.schedule import Schedule
from methods.core.training_loop import Recipe, fit
from methods.registry.registry import get, get_granularity, make, names


def train(
    model: nn.Module,
    batches: Batches,
    training: str = "map",
    *,
    epochs: int = 30,
    optimizer: str = "sgd",
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    mask: Mask | None = None,
    posterior: Posterior | None = None,
    **hyperparameters: Any,
) -> Posterior:
    """Train the model in place; returns the posterior to hand to `prune`.

    `batches` decides order and shuffling; it is read once an epoch, and again where a training looks at curvature.
    `mask`: train a pruned network, masked weights stay
    zero. `posterior`: fine-tune, with the penalty that an earlier training learned. Hyperparameters (`lr`,
    `weight_decay`, ...) are those of the training, by name; `optimizer` is "sgd" (momentum 0.9) or "adam", and the learning
    rate follows a short warm-up and a cosine. Raises ValueError naming an unknown training or hyperparameter.
    """
    _check_reiterable(batches)
    recipe = Recipe(epochs=epochs, optimizer=optimizer)
    chosen = _with_given_lr(make("trainings", training, hyperparameters), hyperparameters, recipe)
    problem = Problem(model, batches, loss, seed, dict(mask or {}))
    return fit(problem, chosen, recipe, previous=posterior)


def prune(
    model: nn.Module,
    batches: Batches | None = None,
    method: str = "magnitude",
    *,
    sparsity: float | None = None,
    granularity: str = "weight",
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    mask: Mask | None = None,
    posterior: Posterior | None = None,
    **hyperparameters: Any,
) -> Mask:
    """Prune the model in place and return the mask (weight name -> bool tensor, True = kept).

    Exactly round(sparsity · prunable weights) weights are masked and set to zero; with granularity "channel" it is the nearest to
    that which whole channels make, and `compact` then removes them; a pattern ("2:4") has a sparsity of its own. A method that
    compensates adjusts the others. `batches` may be left out for methods that need no data (channels are found from the inputs'
    shape, and need them); `mask` cuts further into an earlier mask. Nothing is trained here: a method with a training of its own
    is refused, with what to call instead. Raises ValueError naming what is wrong.
    """
    criterion = _criterion(method, hyperparameters)
    problem = _problem(model, batches, criterion, loss, seed, mask, posterior)
    chosen = get_granularity(granularity)
    share = chosen.fixed_sparsity if sparsity is None else sparsity
    if share is None:
        raise ValueError("say how much to remove: sparsity=0.9 is nine weights in ten")
    return cut(problem, criterion, chosen, share)


def compact(
    model: nn.Module,
    mask: Mask,
    batches: Batches | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    granularity: str = "channel",
) -> nn.Module:
    """A plain, physically smaller copy of a model without the channels that a mask removes; the model is left as it is.

        mask = methods.prune(model, batches, method="obd", sparsity=0.5, granularity="channel")
        small = methods.compact(model, mask, batches)

    `input_shape` is that of one input, without the batch: read off `batches` where not given. The smaller model computes what
    the masked one does, unless a LayerNorm averages over removed channels. Raises ValueError where the mask is not one of whole
    channels, and where the network cannot be traced.
    """
    chosen = get_granularity(granularity)
    if not chosen.compacts:
        raise ValueError(f"granularity '{granularity}' leaves networks as large as they are: there is nothing to remove")
    if batches is not None:
        _check_reiterable(batches)
    problem = Problem(model, batches if batches is not None else (), mask=dict(mask))
    if input_shape is not None:
        problem.input_shape = tuple(input_shape)
    small: nn.Module = chosen.compact(problem).model
    return small


def train_pruned(
    model: nn.Module,
    batches: Batches,
    method: str = "magnitude_gradual",
    *,
    sparsity: float,
    schedule: Schedule | None = None,
    epochs: int = 30,
    optimizer: str = "sgd",
    granularity: str = "weight",
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    mask: Mask | None = None,
    posterior: Posterior | None = None,
    options: Mapping[str, Any] | None = None,
    **hyperparameters: Any,
) -> tuple[Mask, Posterior]:
    """Train the model in place and prune it on the way; returns the final mask and what the training leaves.

        mask, posterior = methods.train_pruned(model, batches, method="spam_online", sparsity=0.9)
        methods.train(model, batches, training="spam", epochs=5, mask=mask, posterior=posterior)  # fine-tune

    `method`: one that prunes while training, which brings its training and its schedule (`criterion@training` composes). Any
    other whose criterion may be applied there needs a `schedule`; one given replaces the method's own. Exactly
    round(sparsity · prunable weights) weights are masked and zero in the end. `mask`: those it masks stay at zero from the
    start; `posterior`: prune a trained network while it is fine-tuned. `options` are the criterion's hyperparameters; further
    ones are the training's, as in `train`, and so are the other arguments; `batches` are read for scoring too. With granularity
    "channel" as many weights are masked as whole channels make. Raises
    ValueError naming what is wrong.
    """
    found = get(method)
    if schedule is not None:
        found = replace(found, stage=schedule.stage, schedule=schedule)
    if found.schedule is None:
        ready = ", ".join(name for name in names() if get(name).stage is Stage.DURING)
        raise ValueError(f"'{method}' does not say when to cut while training: give it a schedule, or take one of {ready}")
    if found.stage is Stage.AFTER and posterior is None:
        raise ValueError(f"'{method}' prunes a trained network: call posterior = methods.train(...) first, and give posterior=posterior")
    recipe = Recipe(epochs=epochs, optimizer=optimizer)
    criterion = found.make_criterion(**(options or {}))
    training = _with_given_lr(found.make_training(**hyperparameters), hyperparameters, recipe)
    problem = _problem(model, batches, criterion, loss, seed, mask, None)
    pruner = Pruner(criterion, get_granularity(granularity), found.schedule, sparsity)
    state = fit(problem, training, recipe, previous=posterior, pruner=pruner)
    return problem.mask, state


def scores(
    model: nn.Module,
    batches: Batches | None = None,
    method: str = "magnitude",
    *,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    mask: Mask | None = None,
    posterior: Posterior | None = None,
    target: float = 0.0,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """The scores alone: weight name -> tensor of the weight's shape, larger = keep.

    The model stays as it is; weights outside `mask` should be zero in it already.
    """
    criterion = _criterion(method, hyperparameters)
    problem = _problem(model, batches, criterion, loss, seed, mask, posterior)
    problem.target = target
    return score(problem, criterion).values


def _with_given_lr(training: Training, given: Mapping[str, Any], recipe: Recipe) -> Training:
    """The training, with `lr` (if given) as the optimiser's own learning rate; its default is that of SGD."""
    return recipe.with_lr(training, training.lr) if "lr" in given else training


def _criterion(method: str, hyperparameters: dict[str, Any]) -> Criterion:
    found = get(method)
    if found.schedule is not None:
        raise ValueError(
            f"'{method}' cuts by a schedule, while the network trains: call mask, posterior = methods.train_pruned(model, batches, "
            f"method='{method}', sparsity=...); its criterion alone is '{found.criterion}'"
        )
    if found.training != "map":
        base = found.name.partition("@")[0] if "@" in found.name else found.criterion
        raise ValueError(
            f"'{method}' needs a network trained with '{found.training}': call posterior = methods.train(model, batches, "
            f"training='{found.training}') first, then prune with method='{base}', posterior=posterior"
        )
    return found.make_criterion(**hyperparameters)


def _problem(
    model: nn.Module,
    batches: Batches | None,
    criterion: Criterion,
    loss: Loss,
    seed: int,
    mask: Mask | None,
    posterior: Posterior | None,
) -> Problem:
    if batches is None:
        if not criterion.data_free:
            raise ValueError(f"'{criterion.name}' reads training data: give it batches")
        batches = ()
    _check_reiterable(batches)
    problem = Problem(model, batches, loss, seed, dict(mask or {}), posterior=posterior)
    if not problem.weights:
        raise ValueError("the model has no prunable weights: no Linear or Conv layer")
    return problem


def _check_reiterable(batches: Batches) -> None:
    if iter(batches) is batches:
        raise ValueError("batches must be re-iterable (a list, a DataLoader), not an iterator that is used up once read")
