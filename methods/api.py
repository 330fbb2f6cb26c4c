"""The calls for anybody's own code: `train`, `prune`, `compact`, `train_pruned`, `scores`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import nn

from methods.core.arguments import copied, require, require_names, sizes
from methods.core.callbacks import Callback, with_progress
from methods.core.configurations import Criterion
from methods.core.cutting import Pruner, cut, score
from methods.core.interface import Batches, Loss, Posterior, Problem, Stage
from methods.core.masks import Mask
from methods.core.prunable import check_network, nothing_prunable, prunable
from methods.core.recipe import Recipe
from methods.core.schedule import Schedule
from methods.core.training_loop import fit
from methods.registry.alone import criterion_alone
from methods.registry.registry import get, get_granularity, make, names


def train(
    model: nn.Module,
    batches: Batches,
    training: str = "map",
    *,
    epochs: int = 30,
    optimizer: str = "sgd",
    lr_schedule: str = "cosine",
    precision: str = "full",
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    mask: Mask | None = None,
    posterior: Posterior | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **hyperparameters: Any,
) -> Posterior:
    """Train a model in place. Modules in eval mode (frozen batch norm) stay so if the model itself is in training mode.

        posterior = methods.train(model, batches, training="spam", epochs=30)
        methods.train(model, batches, training="decoupled", optimizer="adamw", lr=1e-3, weight_decay=0.05)
        methods.train(model, batches, callbacks=[lambda record: print(record.epoch, record.loss)])

    Args:
        model: the network.
        batches: re-iterable of (inputs, targets), e.g. a DataLoader; it decides order and shuffling. It is read once per epoch, and
            again if the training computes curvature.
        training: a registered training: "map" (L2 penalty), "spam" (marginal likelihood), "dwf" (factorised weights),
            "decoupled" (decoupled weight decay), ...; `methods.names("trainings")` lists all.
        epochs: number of epochs.
        optimizer: "sgd" (momentum 0.9), "adam", or "adamw", which needs a training with decoupled weight decay.
        lr_schedule: learning rate after a short warm-up: "cosine" or "linear" (to zero), "constant", or "step" (a tenth from half of the
            training on, a hundredth from three quarters on).
        precision: "full": that of the weights; "bfloat16": forward passes under `torch.autocast`.
        loss: (outputs, targets) -> mean loss of a batch.
        seed: seed of all random draws.
        mask: train a pruned network: weight name -> bool tensor; masked weights (False) stay zero.
        posterior: fine-tune with the penalty that an earlier training learned.
        progress: whether to show the epochs on stderr.
        callbacks: functions; each is called with an `EpochRecord` after every epoch. If one raises, the model is as before.
        hyperparameters: those of the training, e.g. `lr`, `weight_decay`. `lr` is the peak learning rate of the chosen optimizer; by
            default 0.1 for SGD and a hundredth of this for Adam (`dwf`: twice that).

    Returns:
        The posterior, to pass to `prune`.

    Raises:
        ValueError: if a name is unknown or a value is outside its limits, the mask does not fit the model, or the network or the loss
            cannot be computed for a batch (the message names the layer).
        FloatingPointError: if a loss or a weight is no longer finite.
    """
    check_network(model)
    require_names(training=training)
    recipe = Recipe(epochs=epochs, optimizer=optimizer, precision=precision, schedule=lr_schedule)
    chosen = recipe.with_given_lr(make("trainings", training, hyperparameters), hyperparameters)
    # A mask may hold weights that were included by name when it was made.
    given = copied(mask)
    more = [n for n, p in model.named_parameters() if n in given and p.dim() > 1]
    problem = Problem(model, batches, loss, seed, given, include=more)
    return fit(problem, chosen, recipe, previous=posterior, callbacks=with_progress(callbacks, progress))


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
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    **hyperparameters: Any,
) -> Mask:
    """Prune a model in place, without training.

    Masked weights are set to zero. Exactly round(sparsity · prunable weights) of them are masked. With granularity="channel" the
    sparsity is the closest that whole channels allow (`compact` then removes them physically); a pattern such as "2:4" has its own
    sparsity. Methods with a weight update also adjust the kept weights.

    Args:
        model: the network.
        batches: re-iterable of (inputs, targets); may be omitted if the method needs no data. Granularity "channel" needs it for the
            shape of the inputs.
        method: a method without a training of its own.
        sparsity: fraction to remove, in [0, 1); may be omitted for a pattern.
        granularity: "weight", "channel" or a pattern "n:m".
        loss: (outputs, targets) -> mean loss of a batch.
        seed: seed of all random draws.
        mask: an earlier mask, to prune further.
        posterior: the result of `train`.
        include: patterns of names of more parameters to prune, e.g. "embed.*"; see `prunable`.
        exclude: patterns of names of weights to leave out, e.g. ["head.weight"]; they are not counted.
        hyperparameters: those of the criterion.

    Returns:
        The mask: weight name -> bool tensor, True = kept.

    Raises:
        ValueError: if an argument is wrong, the network is not supported, or the method has a training of its own (the message says
            what to call first).
    """
    require_names(method=method)
    criterion = criterion_alone(method, hyperparameters)
    problem = _problem(model, batches, criterion, loss, seed, mask, posterior, include, exclude)
    chosen = get_granularity(granularity)
    share = chosen.fixed_sparsity if sparsity is None else sparsity
    if share is None:
        raise ValueError("sparsity is required, e.g. sparsity=0.9 removes 90 % of the weights")
    return cut(problem, criterion, chosen, share)


def compact(
    model: nn.Module,
    mask: Mask,
    batches: Batches | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    granularity: str = "channel",
) -> nn.Module:
    """Make a physically smaller copy of a model, without the channels that a mask removes.

        mask = methods.prune(model, batches, method="obd", sparsity=0.5, granularity="channel")
        small = methods.compact(model, mask, batches)

    The smaller model computes the outputs of the masked one if every operation between a removed channel and the layers that read it
    treats channels separately: batch norm, activations, pooling, gates, depthwise convolutions. It does not if an operation combines
    channels: LayerNorm, GroupNorm with one group, RMSNorm, L2 normalisation (if biases or norms make masked channels other than
    zero), a mean or maximum over channels. `methods.changes_outputs` names the weights concerned.

    Args:
        model: the network; it is not changed.
        mask: weight name -> bool tensor, made with the same granularity.
        batches: re-iterable of (inputs, targets), for the shape of the inputs.
        input_shape: shape of one input, without the batch dimension; in place of `batches`.
        granularity: one that can be removed physically.

    Returns:
        A plain `torch.nn.Module`.

    Raises:
        ValueError: if the mask does not consist of whole channels, or the network cannot be traced.
    """
    chosen = get_granularity(granularity)
    if not chosen.compacts:
        raise ValueError(f"granularity '{granularity}' does not make networks smaller, so nothing can be removed physically")
    problem = Problem(model, () if batches is None else batches, mask=copied(mask))
    if input_shape is not None:
        problem.input_shape = sizes(input_shape)
    small: nn.Module = chosen.compact(problem).model
    return small


def train_pruned(
    model: nn.Module, batches: Batches, method: str = "magnitude_gradual", *, sparsity: float, schedule: Schedule | None = None,
    epochs: int = 30, optimizer: str = "sgd", lr_schedule: str = "cosine", precision: str = "full", granularity: str = "weight",
    loss: Loss = F.cross_entropy, seed: int = 0, mask: Mask | None = None, posterior: Posterior | None = None,
    include: Sequence[str] | str = (), exclude: Sequence[str] | str = (), options: Mapping[str, Any] | None = None,
    progress: bool = False, callbacks: Sequence[Callback] = (), **hyperparameters: Any,
) -> tuple[Mask, Posterior]:  # fmt: skip
    """Train a model in place and prune it during training.

        mask, posterior = methods.train_pruned(model, batches, method="spam_online", sparsity=0.9)
        methods.train(model, batches, training="spam", epochs=5, mask=mask, posterior=posterior)  # fine-tune

    At the end exactly round(sparsity · prunable weights) weights are masked and zero; with granularity="channel" the closest number
    that whole channels allow.

    Args:
        model: the network.
        batches: re-iterable of (inputs, targets), for training and for scoring.
        method: a method that prunes during training, with its training and schedule; or any other method whose criterion can be
            applied during training, with a `schedule`.
        sparsity: final sparsity, in [0, 1).
        schedule: when to cut; replaces the schedule of the method.
        epochs: see `train`.
        optimizer: see `train`.
        lr_schedule: see `train`.
        precision: see `train`.
        loss: see `train`.
        seed: see `train`.
        granularity: see `prune`.
        mask: an earlier mask; the weights that it masks are zero from the start. `rigl`, `set` and `granet` may grow them again.
        posterior: prune a trained network during fine-tuning.
        include: see `prune`.
        exclude: see `prune`.
        options: hyperparameters of the criterion.
        progress: see `train`.
        callbacks: see `train`.
        hyperparameters: those of the training, see `train`.

    Returns:
        (mask, posterior).

    Raises:
        ValueError: if an argument is wrong or the network is not supported.
    """
    require_names(method=method)
    require(options, (Mapping, type(None)), "options", "a dict: hyperparameter of the criterion -> value")
    require(schedule, (Schedule, type(None)), "schedule", "an instance, e.g. methods.Gradual()")
    found = get(method)
    if schedule is not None:
        found = replace(found, stage=schedule.stage, schedule=schedule)
    if found.schedule is None:
        ready = ", ".join(name for name in names() if get(name).stage is Stage.DURING)
        raise ValueError(f"'{method}' has no schedule for pruning during training: pass schedule=..., or use one of {ready}")
    if found.stage is Stage.AFTER and posterior is None:
        raise ValueError(f"'{method}' prunes a trained network: call posterior = methods.train(...) first, then pass posterior=posterior")
    recipe = Recipe(epochs=epochs, optimizer=optimizer, precision=precision, schedule=lr_schedule)
    criterion = found.make_criterion(**(options or {}))
    training = recipe.with_given_lr(found.make_training(**hyperparameters), hyperparameters)
    problem = _problem(model, batches, criterion, loss, seed, mask, None, include, exclude)
    pruner = Pruner(criterion, get_granularity(granularity), found.schedule, sparsity)
    state = fit(problem, training, recipe, previous=posterior, pruner=pruner, callbacks=with_progress(callbacks, progress))
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
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    target: float = 0.0,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """Compute the scores of a method, without pruning. The model is not changed.

    Args:
        model: the network; weights outside `mask` should be zero in it.
        batches: see `prune`.
        method: see `prune`.
        loss: see `prune`.
        seed: see `prune`.
        mask: see `prune`.
        posterior: see `prune`.
        include: see `prune`.
        exclude: see `prune`.
        hyperparameters: see `prune`.
        target: sparsity that the scores are for, if the criterion depends on it.

    Returns:
        Weight name -> tensor of the weight's shape; larger = keep. For a method that scores output channels (`fpgm`): weight name ->
        (outputs,).

    Raises:
        ValueError: if an argument is wrong or the network is not supported.
    """
    require_names(method=method)
    criterion = criterion_alone(method, hyperparameters)
    problem = _problem(model, batches, criterion, loss, seed, mask, posterior, include, exclude)
    problem.target = target
    found = score(problem, criterion)
    return found.values or found.rows or {}


def _problem(
    model: nn.Module, batches: Batches | None, criterion: Criterion, loss: Loss, seed: int, mask: Mask | None,
    posterior: Posterior | None, include: Sequence[str] | str, exclude: Sequence[str] | str,
) -> Problem:  # fmt: skip
    if batches is None:
        if not criterion.data_free:
            raise ValueError(f"'{criterion.name}' reads training data: pass batches")
        batches = ()
    if not prunable(model, include, exclude):
        raise ValueError(nothing_prunable(model))
    return Problem(model, batches, loss, seed, copied(mask), posterior=posterior, include=include, exclude=exclude)
