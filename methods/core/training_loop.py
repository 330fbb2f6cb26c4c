"""The only training loop: keeps masked weights at zero, calls the hooks of the training, prunes on schedule, decays the learning rate."""

from collections.abc import Sequence

import torch

from methods.core.callbacks import Callback
from methods.core.configurations import Training
from methods.core.cutting import Pruner
from methods.core.interface import Batches, Posterior, Problem
from methods.core.modes import own_modes, unchanged_on_error
from methods.core.recipe import Recipe
from methods.core.training_run import TrainingRun, own_draws


def fit(
    problem: Problem,
    training: Training,
    recipe: Recipe,
    *,
    batches: Batches | None = None,
    previous: Posterior | None = None,
    pruner: Pruner | None = None,
    callbacks: Sequence[Callback] = (),
) -> Posterior:
    """Train the model of a problem in place.

    Masked weights are zero at every step, whatever the optimiser stores about them. If the model is in training mode, modules that
    are in eval mode stay so (frozen batch norm). If it is in eval mode, all modules are trained but norms with frozen parameters.
    After an exception the model is as before.

    Args:
        problem: network, training data, loss, seed and mask.
        training: the training.
        recipe: number of epochs, optimiser, learning rate.
        batches: batches for the training steps, e.g. shuffled and augmented; None for those of the problem. The hooks of the
            training read the batches of the problem in any case, so that they do not change what the steps are taken on.
        previous: the posterior of an earlier training, to continue (fine-tuning): its penalty stays as it is, and the hooks
            `after_epoch` and `finish` are not called.
        pruner: prunes during training, by its schedule. A cut comes after the training's hook of that epoch; the criterion sees
            the current state of the training as the posterior. `problem.mask` is always the mask that holds: after each cut
            the new one, with dynamic masks the initial one until the last cut.
        callbacks: each is called with an `EpochRecord` after every epoch. What they draw from torch's random generators does not
            change the training. Their exceptions are raised as they are.

    Returns:
        The posterior that the training leaves.

    Raises:
        FloatingPointError: if a loss or a weight is no longer finite.
        ValueError: if there are no batches or nothing to train, the network or the loss fails on a batch, or the pruner does not
            fit the network or the number of epochs, or the optimiser does not fit the training.
    """
    return fit_run(TrainingRun(problem, training, recipe, batches, previous, pruner, callbacks))


def fit_run(run: TrainingRun) -> Posterior:
    """Do a training, see `fit`."""
    problem = run.problem
    with unchanged_on_error(problem.model), own_modes(problem.model), torch.enable_grad(), own_draws(problem):
        run.rehearse()
        for step in run.steps():
            if step is None:
                run.tell()
            else:
                run.differentiate(step)
    return run.state
