"""One training, as steps that wait for their gradient: masks, hooks, cuts on schedule, learning rate."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from methods.core.acting import acting_afterwards
from methods.core.arguments import require
from methods.core.callbacks import Callback, EpochRecord, Work, check_callbacks
from methods.core.configurations import Training
from methods.core.cutting import Pruner, cut, rehearse
from methods.core.interface import Batches, Posterior, Problem, check_length, check_prior, count_batches, count_masked, derive
from methods.core.masks import Mask, kept_weights, sparsity_of
from methods.core.modes import evaluating
from methods.core.reading import explaining, outputs_and_loss, pairs
from methods.core.recipe import Recipe
from methods.core.regrowth import Regrowing, moved
from methods.core.schedule import Lap
from methods.core.steps import check_finite, decay_gradients, mask_gradients, mask_memory, mask_weights, masked_parameters, shrink


class Step(NamedTuple):
    """A batch whose gradient a training waits for: inputs and targets on the device of the network."""

    x: Tensor
    y: Tensor


def own_draws(problem: Problem) -> AbstractContextManager[None]:
    """Context whose draws from torch's generators do not change the draws after it."""
    return torch.random.fork_rng(devices=[problem.device] if problem.device.type == "cuda" else [])


class TrainingRun:
    """A training. Its arguments are those of `methods.core.training_loop.fit`.

    Attributes:
        state: the posterior; after the last step the one that the training leaves.
        named: name -> parameter, of those that are trained.
        seed: seed of torch's global generator, from which dropout draws.
    """

    def __init__(
        self, problem: Problem, training: Training, recipe: Recipe, batches: Batches | None = None, previous: Posterior | None = None,
        pruner: Pruner | None = None, callbacks: Sequence[Callback] = (),
    ) -> None:  # fmt: skip
        require(previous, (Posterior, type(None)), "posterior", "what methods.train returns")
        recipe.check(training)
        check_callbacks(callbacks)
        self.problem, self.training, self.recipe = problem, training, recipe
        self.batches = batches = problem.batches if batches is None else batches
        self.previous, self.pruner, self.callbacks = previous, pruner, callbacks
        self.seed = derive(problem.seed, "training")
        self.laps = pruner.laps(problem, recipe.epochs) if pruner is not None else (Lap(1, recipe.epochs),)
        self.n_batches = count_batches(batches)
        if not self.n_batches or not problem.samples:
            raise ValueError("there are no samples to train on: the batches are empty")
        self.resting = _resting(problem.model)
        self.moves = pruner.moves(problem, self.n_batches * recipe.epochs) if pruner is not None else {}
        self.cuts_left = sum(len(lap.cuts) for lap in self.laps) + len(self.moves)
        self.moved = False
        self.done = 0
        self.optimizer: torch.optim.Optimizer
        self.state: Posterior

    def rehearse(self) -> None:
        """Refuse what cannot be pruned, before it is trained."""
        kept, total = kept_weights(self.problem.mask)
        if self.pruner is not None or kept < total:
            with evaluating(self.problem.model, self.problem.weights):
                rehearse(self.problem, reads_data=False)

    def explaining(self) -> AbstractContextManager[None]:
        """Context in which errors of torch and of the network name the training."""
        return explaining(self.problem.model, f"training '{self.training.name}' fails on this network")

    def differentiate(self, step: Step) -> None:
        """Leave the gradient of loss and penalty on a batch in the parameters."""
        with self.explaining():
            with self.recipe.cast(self.problem.device):
                _, loss = outputs_and_loss(self.problem.model, self.problem.loss, step.x, step.y)
            self.penalised(loss).backward()  # type: ignore[no-untyped-call]

    def penalised(self, loss: Tensor) -> Tensor:
        """The loss of a batch with the penalty; it is recorded, and the gradients of before are gone."""
        extra = self.training.penalty(self.named, self.state)
        if extra is not None:
            loss = loss + extra
        self.losses.append(loss.detach())
        for p in self.named.values():  # what `optimizer.zero_grad` does, without its bookkeeping for profilers
            p.grad = None
        return loss

    def steps(self) -> Iterator[Step | None]:
        """Train. Before the next step is asked for, the gradient of this one must be in the parameters: see `differentiate`.

        Yields:
            A step; None after each epoch.
        """
        torch.manual_seed(self.seed)
        with self.explaining():
            self._start()
            for lap in self.laps:
                yield from self._lap(lap)
            self.optimizer.zero_grad(set_to_none=True)
            if self.previous is None:
                self.state = self.training.finish(self.problem, self.state)

    def tell(self) -> None:
        """Call the callbacks after an epoch."""
        if self.callbacks:
            record = self._record()
            with own_draws(self.problem):
                for callback in self.callbacks:
                    callback(record)

    def _record(self) -> EpochRecord:
        evidence = self.state.marginal_likelihood[-1] if self.updated else None
        return EpochRecord(
            epoch=self.done,
            epochs=sum(lap.last - lap.first + 1 for lap in self.laps),
            loss=float(torch.stack(self.losses).double().mean()),
            lr=self.optimizer.param_groups[0]["lr"],
            evidence=evidence,
            sparsity=sparsity_of(self.problem.mask) if self.problem.mask else 0.0,
            work=tuple(self.work),
        )

    def _start(self) -> None:
        problem, model = self.problem, self.problem.model
        self.state = self.previous if self.previous is not None else self.training.prepare(problem)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
        if self.cuts_left and not problem.mask.keys() <= problem.weights.keys():
            raise ValueError(f"training '{self.training.name}' re-parametrises the weights, so they cannot be pruned during training")
        check_prior(self.state, self.named)
        self.work: list[Work] = []
        self._set_mask(problem.mask)
        mask_weights(self.masked)
        # Only the first lap passes the epoch that later laps rewind to.
        self.rewinds_to = next((lap.first - 1 for lap in self.laps if lap.rewind), None)

    def _lap(self, lap: Lap) -> Iterator[Step | None]:
        if lap.rewind:
            weights, self.state = self.early
            self.problem.model.load_state_dict(weights)
            mask_weights(self.masked)
        self.optimizer = self.recipe.make(list(self.named.values()), self.training.lr)
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        self._between(lap, lap.first - 1)
        if 0 in self.moves:
            self._move(0, lap)
        for epoch in range(lap.first, lap.last + 1):
            yield from self._epoch(epoch, lap)
            known = len(self.state.marginal_likelihood)
            with own_draws(self.problem):  # draws of the hooks and cuts must not shift the dropout of the next epoch
                if self.previous is None:
                    self.state = self.training.after_epoch(self.problem, self.state, epoch, lap.last)
                self._between(lap, epoch)
            self.updated, self.done = len(self.state.marginal_likelihood) > known, self.done + 1
            yield None

    def _between(self, lap: Lap, epoch: int) -> None:
        """After an epoch, or before the first one: store the weights to rewind to, and cut."""
        if epoch == self.rewinds_to and not lap.rewind:
            self.early = {n: v.clone() for n, v in self.problem.model.state_dict().items()}, self.state
        if epoch in lap.cuts:
            self._cut(lap.cuts[epoch], lap.persistent)

    def _epoch(self, epoch: int, lap: Lap) -> Iterator[Step]:
        """One pass over the batches; the learning-rate schedule ends after the last epoch of the lap."""
        model, device, steps = self.problem.model, self.problem.device, self.n_batches * lap.last
        model.train()
        for module in self.resting:
            module.training = False
        # The penalty of an earlier training would be added to the decoupled decay.
        decay = self.state.decay if self.training.decoupled_decay is None else {}
        decayed = [(p, decay[n].to(p.dtype)) for n, p in self.named.items() if n in decay]
        step = self.n_batches * (epoch - 1)
        self.losses: list[Tensor] = []
        self.work, self.moved = [], True
        for x, y in pairs(self.batches, device):
            yield Step(x, y)
            step += 1
            move = self.moves.get(step)
            self._count(len(y), dense=move is not None and move.share > 0)
            if move is None or not move.share:  # a move that regrows weights takes the place of the step
                self._step(decayed, step / (steps + 1))
            if move is not None:
                self._move(step, lap)
        if step != self.n_batches * epoch:
            check_length(self.batches, self.n_batches)
        mask_weights(self.masked)
        check_finite(self.losses, self.named, f"epoch {epoch} of {lap.last}")

    def _step(self, decayed: list[tuple[nn.Parameter, Tensor]], progress: float) -> None:
        """One step of the optimiser; `progress`: the fraction of all steps that are done after it."""
        decay_gradients(decayed)
        mask_gradients(self.masked)
        for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = lr * self.recipe.factor(progress)
        if self.training.decoupled_decay:
            shrink(self.optimizer, self.training.decoupled_decay)
        self.optimizer.step()

    def _count(self, samples: int, dense: bool) -> None:
        """Add the work of one batch."""
        last = self.work[-1] if self.work else None
        if last is not None and last.masked is self.counts and last.dense == dense:
            self.work[-1] = last._replace(samples=last.samples + samples)
        else:
            self.work.append(Work(samples, self.counts, dense))

    def _move(self, step: int, lap: Lap) -> None:
        """Change the mask after a step: cut to the sparsity of the move, then drop and grow weights."""
        assert self.pruner is not None
        move, criterion = self.moves[step], self.pruner.criterion
        with own_draws(self.problem):
            gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.problem.weights.items()}
            kept, total = kept_weights(self.problem.mask)
            if isinstance(criterion, Regrowing) and count_masked(move.sparsity, total) <= total - kept:
                self.cuts_left -= 1
            else:
                self._cut(move.sparsity, lap.persistent)
            if isinstance(criterion, Regrowing) and move.share:
                self._set_mask(moved(self.problem, criterion, gradients, move.share, step))
                with acting_afterwards(self.problem.model, self.problem.weights):
                    mask_weights(self.masked)
                mask_memory(self.optimizer, self.masked)

    def _cut(self, sparsity: float, persistent: bool) -> None:
        assert self.pruner is not None
        # Curvature from before fine-tuning belongs to the old weights.
        stale = self.previous is not None and self.moved
        posterior = replace(self.state, curvature={}, factors={}) if stale else self.state
        pruner = self.pruner
        mask = cut(replace(self.problem, posterior=posterior), pruner.criterion, pruner.granularity, sparsity, cost=pruner.cost)
        self.cuts_left -= 1
        if persistent or not self.cuts_left:
            self._set_mask(mask)
            mask_memory(self.optimizer, self.masked)

    def _set_mask(self, mask: Mask) -> None:
        self.problem.mask, self.masked = mask, masked_parameters(self.problem.model, mask)
        self.counts = {n: (int(m.sum()), m.numel()) for n, m in mask.items() if not bool(m.all())}


def _resting(model: nn.Module) -> list[nn.Module]:
    """The modules that stay in eval mode while the model trains."""
    if model.training:
        return [m for m in model.modules() if not m.training]
    norms = [m for m in model.modules() if isinstance(m, (_BatchNorm, _InstanceNorm)) and m.weight is not None]
    return [m for m in norms if not any(p.requires_grad for p in m.parameters())]
