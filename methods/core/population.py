"""Several networks of one architecture, trained at the same time as one: for a GPU, which small networks leave idle.

The parameters of the K networks are stacked to tensors (K, ...), and one forward and backward pass by `torch.func.vmap` gives the
gradients of all. Everything else of a training (masks, penalty, optimiser, hooks, cuts) is done for each network as if it were alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from methods.core.interface import Posterior
from methods.core.modes import own_modes, unchanged_on_error
from methods.core.training_run import Step, TrainingRun, own_draws
from methods.core.unaltered import HOOKS


class NotAlike(ValueError):
    """Networks or trainings that cannot be done as one."""


def fit_together(runs: Sequence[TrainingRun]) -> list[Posterior]:
    """Train several networks in place, as `fit` does one by one, up to rounding.

    The networks may differ in weights, masks, seeds and hyperparameters; architecture, loss, precision, and the number of samples,
    batches and epochs must be the same. Networks with hooks are refused, because a hook may depend on its own network. Dropout draws
    alike for all, so with dropout the seeds must be the same. Batches must not draw from torch's global generator, which all share.

    Args:
        runs: the trainings, with the arguments of `fit`.

    Returns:
        The posterior that each training leaves. After an exception all networks are as before.

    Raises:
        NotAlike: if they cannot be trained together.
        FloatingPointError, ValueError: as `fit` does, for any of them.
    """
    first = runs[0]
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(unchanged_on_error(run.problem.model))
            stack.enter_context(own_modes(run.problem.model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(own_draws(first.problem))
        for run in runs:
            run.rehearse()
        population: _Population | None = None
        for steps in zip(*(run.steps() for run in runs), strict=True):
            population = population or _Population(runs)  # at the first step, because a training may change the modules before
            population.advance(steps)
    return [run.state for run in runs]


class _Population:
    """The networks of several trainings. Raises NotAlike if they differ in more than numbers, or have hooks."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        _check(runs)
        self.runs, self.problem, self.recipe = runs, runs[0].problem, runs[0].recipe
        self.parameters = [dict(run.problem.model.named_parameters()) for run in runs]
        self.buffers = [dict(run.problem.model.named_buffers()) for run in runs]
        self.randomness = "same" if len({run.seed for run in runs}) == 1 else "error"

    def advance(self, steps: tuple[Step | None, ...]) -> None:
        """Take one step of all networks, or end an epoch of all."""
        if all(step is None for step in steps):
            for run in self.runs:
                run.tell()
            return
        losses = self.losses([step for step in steps if step is not None])
        total = torch.stack([run.penalised(loss) for run, loss in zip(self.runs, losses.unbind(), strict=True)]).sum()
        total.backward()  # type: ignore[no-untyped-call]

    def losses(self, steps: Sequence[Step]) -> Tensor:
        """The loss of each network on its batch (K), differentiable in its parameters. Buffers change as in a forward pass of each."""
        buffers = _stacked(self.buffers)
        try:
            x, y = torch.stack([step.x for step in steps]), torch.stack([step.y for step in steps])
            with self.recipe.cast(self.problem.device):
                losses: Tensor = vmap(self._loss, randomness=self.randomness)(_stacked(self.parameters), buffers, x, y)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotAlike(f"the network cannot be stacked: {error}") from error
        with torch.no_grad():
            for name, stacked in buffers.items():
                for each, value in zip(self.buffers, stacked.unbind(), strict=True):
                    each[name].copy_(value)
        return losses

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The loss of one network with these tensors."""
        value: Tensor = self.problem.loss(functional_call(self.problem.model, (parameters, buffers), (x,)), y)
        return value


def _stacked(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in tensors]) for name in tensors[0]}


def _check(runs: Sequence[TrainingRun]) -> None:
    """Raise NotAlike if the networks or trainings differ in more than numbers, or a network has hooks."""
    if any(getattr(m, hooks) for run in runs for m in run.problem.model.modules() for hooks in HOOKS):
        raise NotAlike("a network has hooks, which may depend on it")
    forms = {
        (_form(run.problem.model), run.recipe.precision, run.problem.loss, run.n_batches, tuple((lap.first, lap.last) for lap in run.laps))
        for run in runs
    }
    if len(forms) > 1:
        raise NotAlike("the networks have different architectures, precisions, losses, or numbers of batches or epochs")


def _form(model: nn.Module) -> tuple[object, ...]:
    """What must be equal in two networks: modules with their settings, and the shapes and types of all tensors."""
    modules = tuple((n, f"{type(m).__module__}.{type(m).__qualname__}", _settings(m)) for n, m in model.named_modules())
    return modules, tuple((n, t.shape, t.dtype) for tensors in (model.named_parameters(), model.named_buffers()) for n, t in tensors)


def _settings(module: nn.Module) -> str:
    """The attributes of a module that are numbers, texts or tuples of them, such as its mode, a stride or the rate of dropout.

    Seeds may differ.
    """
    plain = (bool, int, float, str, tuple, type(None))
    return repr(sorted((name, value) for name, value in vars(module).items() if isinstance(value, plain) and name != "seed"))
