"""The only training loop: masks that hold, a training's hooks, a schedule's cuts, a cosine learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.core.cutting import Pruner, cut, own_modes
from methods.core.interface import Batches, Mask, Posterior, Problem, Training, count_batches, derive
from methods.core.schedule import Lap

# A training's `lr` is that of SGD with momentum; another optimiser's natural scale is a factor of it.
OPTIMIZERS: dict[str, float] = {"sgd": 1.0, "adam": 0.01}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the protocol fixes for every method: how long, which optimiser, the shape of the learning rate.

    The learning rate of each step is `training.lr · lr_scale · (factor of the optimiser)`, warmed up linearly over the first
    `warmup` fraction of the steps and then brought to zero by a cosine (Loshchilov and Hutter 2017).
    """

    epochs: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    warmup: float = 0.1
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer '{self.optimizer}' is not one of {', '.join(OPTIMIZERS)}")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")

    def with_lr(self, training: Training, lr: float) -> Training:
        """The training whose steps under this recipe have the peak learning rate `lr`."""
        return replace(training, lr=lr / (self.lr_scale * OPTIMIZERS[self.optimizer]))

    def make(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The optimiser; neither decays weights on its own: the penalty is in the loss."""
        lr *= self.lr_scale * OPTIMIZERS[self.optimizer]
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=lr, betas=(self.momentum, 0.999), fused=True)
        return torch.optim.SGD(parameters, lr=lr, momentum=self.momentum, fused=True)

    def factor(self, progress: float) -> float:
        """The learning rate's factor after a fraction of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1.0 + math.cos(math.pi * (progress - self.warmup) / (1.0 - self.warmup)))


def fit(
    problem: Problem,
    training: Training,
    recipe: Recipe,
    *,
    batches: Batches | None = None,
    previous: Posterior | None = None,
    pruner: Pruner | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Posterior:
    """Train the problem's model in place and return what the training leaves.

    Steps are taken on `batches` where given (shuffled, augmented), else on those of the problem, which the training's hooks
    read for curvature: apart, a training that looks at the data more often still takes its steps on the same batches.

    Weights outside `problem.mask` are zero from the first step to the last, whatever the optimiser remembers. With
    `previous`, the training is continued (fine-tuning): its penalty stays as learned, its updates and `finish` are not run.

    With `pruner`, its schedule's laps are executed: weights are cut after the epochs named there, once the training's hook has run,
    or before a lap; scored with the training's present state as the posterior. `problem.mask` is at any time the mask that is
    held, which the hooks see too: that of the last cut in the end, and before it that of each cut, or under dynamic masks the one
    there was at first.

    Raises FloatingPointError where the loss is no longer finite, ValueError where there are no batches, or the pruner cannot
    do its work.
    """
    run = _Run(problem, training, recipe, problem.batches if batches is None else batches, previous, pruner, on_epoch)
    devices = [problem.device] if problem.device.type == "cuda" else []
    with own_modes(problem.model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(problem.seed, "training"))  # dropout and the like draw from torch's global stream
        return run()


class _Run:
    """One call of `fit`: what changes while it trains."""

    def __init__(
        self, problem: Problem, training: Training, recipe: Recipe, batches: Batches, previous: Posterior | None,
        pruner: Pruner | None, on_epoch: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.problem, self.training, self.recipe, self.batches = problem, training, recipe, batches
        self.previous, self.pruner, self.on_epoch = previous, pruner, on_epoch
        self.laps = pruner.laps(problem, recipe.epochs) if pruner is not None else (Lap(1, recipe.epochs),)
        self.n_batches = count_batches(batches)
        if not self.n_batches:
            raise ValueError("there are no batches to train on")
        self.cuts_left = sum(len(lap.cuts) for lap in self.laps)
        self.moved = False
        self.optimizer: torch.optim.Optimizer

    def __call__(self) -> Posterior:
        problem, model = self.problem, self.problem.model
        self.state = self.previous if self.previous is not None else self.training.prepare(problem)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if self.cuts_left and not problem.mask.keys() <= problem.weights.keys():
            raise ValueError(f"training '{self.training.name}' re-parametrises the weights: they cannot be scored while it runs")
        self.masked = _masked(model, problem.mask)
        _mask_weights(self.masked)
        # Only the first lap passes the epoch that later ones are brought back to.
        self.rewinds_to = next((lap.first - 1 for lap in self.laps if lap.rewind), None)
        for lap in self.laps:
            self._lap(lap)
        self.optimizer.zero_grad(set_to_none=True)
        if self.previous is None:
            self.state = self.training.finish(problem, self.state)
        return self.state

    def _lap(self, lap: Lap) -> None:
        if lap.rewind:
            weights, self.state = self.early
            self.problem.model.load_state_dict(weights)
            _mask_weights(self.masked)
        self.optimizer = self.recipe.make(list(self.named.values()), self.training.lr)
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        self._between(lap, lap.first - 1)
        for epoch in range(lap.first, lap.last + 1):
            self._epoch(epoch, lap.last)
            with torch.random.fork_rng(devices=[self.problem.device] if self.problem.device.type == "cuda" else []):
                # What is drawn here is not missing from the next epoch's dropout.
                if self.previous is None:
                    self.state = self.training.after_epoch(self.problem, self.state, epoch, lap.last)
                self._between(lap, epoch)
            if self.on_epoch is not None:
                self.on_epoch(epoch)

    def _between(self, lap: Lap, epoch: int) -> None:
        """What happens after an epoch, or before the first one: weights are kept for later, and cut."""
        if epoch == self.rewinds_to and not lap.rewind:
            self.early = {n: v.clone() for n, v in self.problem.model.state_dict().items()}, self.state
        if epoch in lap.cuts:
            self._cut(lap.cuts[epoch], lap.persistent)

    def _epoch(self, epoch: int, epochs: int) -> None:
        """One pass over the batches, the learning rate on its way to zero after so many epochs."""
        model, device, steps = self.problem.model, self.problem.device, self.n_batches * epochs
        model.train()
        decayed = [(p, self.state.decay[n]) for n, p in self.named.items() if n in self.state.decay]
        step = self.n_batches * (epoch - 1)
        for x, y in self.batches:
            loss = self.problem.loss(model(x.to(device)), y.to(device))
            extra = self.training.penalty(self.named, self.state)
            if extra is not None:
                loss = loss + extra
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _decay_gradients(decayed)
            _mask_gradients(self.masked)
            for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
                group["lr"] = lr * self.recipe.factor((step + 1) / (steps + 1))
            self.optimizer.step()
            step += 1
        _mask_weights(self.masked)
        self.moved = True
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(f"the training loss is {float(loss.detach())} after epoch {epoch} of {epochs}")

    def _cut(self, sparsity: float, persistent: bool) -> None:
        assert self.pruner is not None
        # Curvature from before fine-tuning belongs to weights that have moved since.
        stale = self.previous is not None and self.moved
        posterior = replace(self.state, curvature={}, factors={}) if stale else self.state
        pruner = self.pruner
        mask = cut(replace(self.problem, posterior=posterior), pruner.criterion, pruner.granularity, sparsity, cost=pruner.cost)
        self.cuts_left -= 1
        if persistent or not self.cuts_left:
            self.problem.mask, self.masked = mask, _masked(self.problem.model, mask)
            _mask_memory(self.optimizer, self.masked)


@torch.no_grad()
def _decay_gradients(decayed: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Add the gradient d θ T / N of the Gaussian prior, as if ½ Σ d θ² T / N were in the loss: one call for all parameters."""
    reached = [(p, c) for p, c in decayed if p.grad is not None]
    if reached:
        gradients: list[Tensor] = [p.grad for p, _ in reached]  # type: ignore[misc]
        torch._foreach_addcmul_(gradients, [p for p, _ in reached], [c for _, c in reached])


def _masked(model: nn.Module, mask: Mask) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters behind weights that are masked in part, each with its mask as factors."""
    return [(p, m.to(p.dtype)) for n, m in mask.items() if not bool(m.all()) for p in _stored(model, n, m.shape)]


def _mask_gradients(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    """A masked weight starts at zero and has no gradient, nor momentum or second moment from one: it stays at zero."""
    for p, m in masked:
        if p.grad is not None:
            p.grad.mul_(m)


@torch.no_grad()
def _mask_weights(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    for p, m in masked:
        p.mul_(m)


def _mask_memory(optimizer: torch.optim.Optimizer, masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    """No momentum and no second moment of weights that have just been cut: either would move them at the next step."""
    for p, m in masked:
        for value in optimizer.state.get(p, {}).values():
            if isinstance(value, Tensor) and value.shape == p.shape:
                value.mul_(m)


def _stored(model: nn.Module, name: str, shape: torch.Size) -> list[nn.Parameter]:
    """The parameters behind a weight: itself, or what a training's `prepare` made of it by `torch.nn.utils.parametrize`."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attribute):
        originals: nn.Module = module.parametrizations[attribute]  # type: ignore[index, assignment]
        return [p for p in originals.parameters() if p.shape == shape]
    return [getattr(module, attribute)]
