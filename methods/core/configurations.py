"""Base classes of the method interface: criteria, trainings and granularities, with their hyperparameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from methods.core import hyperparameters
from methods.core.hyperparameters import Float
from methods.core.interface import Cost, Groups, Posterior, Problem, Scores, Stage, count_masked
from methods.core.masks import Mask


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A frozen dataclass whose fields are hyperparameters, checked and in canonical form.

    Attributes:
        name: the registered name; `methods.register` sets it.

    Raises:
        ValueError: if a hyperparameter is outside its limits.
    """

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hyperparameters.settle(self)


@dataclass(frozen=True, kw_only=True)
class Criterion(Configuration):
    """Decides which weights matter: gives every prunable weight a score.

    `score` is called with the model in eval mode and its masked weights at zero. It must not change the model, its gradients or the
    global random state.

    Attributes:
        stages: when the criterion can be applied; the first one is the default.
        nested: True if the scores do not depend on the target sparsity. If the criterion also cuts in one round, a network is
            scored once for all sparsities, and the masks are nested.
        data_free: True if the criterion reads no batches. It may read `problem.input_shape`.
    """

    stages: ClassVar[tuple[Stage, ...]] = (Stage.AFTER,)
    nested: ClassVar[bool] = True
    data_free: ClassVar[bool] = False

    @property
    def granularities(self) -> tuple[str, ...]:
        """The granularities that the criterion is defined for, by name; empty for all. `("channel",)`: it may return `Scores.rows`."""
        return ()

    def score(self, problem: Problem) -> Scores:
        """Score all prunable weights; a larger score means that the weight is kept first.

        A criterion that chooses weights while it updates others (see `methods.criteria.sparsegpt`) makes its own choice here, for
        `problem.target` and the groups of `problem.granularity`: the scores of the weights that it removes are below all others.
        `compensate` then computes the update for the mask that was made of them.
        """
        raise NotImplementedError

    def refusal(self, granularity: "Granularity") -> str | None:
        """The reason, in one line, why the criterion cannot be used at a granularity; None if it can."""
        if not self.granularities or granularity.name in self.granularities:
            return None
        allowed = " or ".join(f"'{name}'" for name in self.granularities)
        return f"'{self.name}' is defined for granularity {allowed}, not '{granularity.name}'"

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """The sparsities at which to score and cut, one after the other, without training between them.

        Args:
            present: sparsity of the current mask.
            target: sparsity to reach.

        Returns:
            Rising sparsities, the last one equal to `target`. The default is one round. See `methods.core.schedule.exponential`
            and `cubic`.
        """
        return (target,)

    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        """Adjust the kept weights in place to reduce the damage done by removing the others. Optional.

        Args:
            problem: the problem with the mask from before the cut.
            mask: the mask after the cut.
            state: `Scores.state` of the scores that the cut used.
        """

    def unsupported(self, problem: Problem) -> str | None:
        """The reason why the criterion is not defined for this network or loss; None if it is defined. Called before anything runs."""
        return None


@dataclass(frozen=True, kw_only=True)
class Training(Configuration):
    """Decides how the dense network is trained: hooks that `methods.fit`, the only training loop, calls.

    An instance holds hyperparameters only. What a training learns is in the `Posterior` that its hooks return.

    `lr` is the peak learning rate of SGD with momentum. The recipe of another optimiser rescales it. Tuning searches within half a
    decade of the default: smaller rates train too slowly for short budgets, larger ones diverge.
    """

    lr: float = Float(0.1, 0.03, 0.3, log=True, above=0, meaning="peak learning rate of SGD with momentum")

    @property
    def decoupled_decay(self) -> float | None:
        """λ of decoupled weight decay, θ ← θ - lr · λ · θ in each step; None if weight decay is in the loss."""
        return None

    def prepare(self, problem: Problem) -> Posterior:
        """The state at the start of training. May re-parametrise the model."""
        raise NotImplementedError

    def penalty(self, parameters: Mapping[str, nn.Parameter], state: Posterior) -> Tensor | None:
        """A penalty that is added to the mean loss of each batch.

        The loop itself adds the gradient of the Gaussian prior of the state, ½ Σ_k d_k θ_k² · T / N.

        Args:
            parameters: name -> trainable parameter.
            state: the current state.

        Returns:
            A scalar tensor; None for no penalty other than the prior.
        """
        return None

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        """The state for the next epoch, after epoch `epoch` (counted from 1) of `epochs`. Not called during fine-tuning."""
        return state

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The state that is stored with the trained network. Undoes what `prepare` did to the model. Not called during fine-tuning."""
        return state


@dataclass(frozen=True, kw_only=True)
class Granularity(Configuration):
    """Decides in which units weights are removed: turns scores into a mask.

    Attributes:
        compacts: True if the masked weights can be removed physically, by `compact`. Only then `cut` and `check` accept a
            `cost`; `sparsity` is then the fraction of the dense network's cost to remove, not of its prunable weights.
    """

    compacts: ClassVar[bool] = False

    @property
    def fixed_sparsity(self) -> float | None:
        """The only sparsity of a pattern; None if any sparsity can be requested."""
        return None

    def groups(self, problem: Problem) -> dict[str, Groups] | None:
        """Name -> groups of which some weights must be kept; weights that it does not name are not cut. None: no such limits."""
        return None

    def unsupported(self, problem: Problem) -> str | None:
        """The reason why nothing of this network can be removed in such units; None if it can. Called before anything runs."""
        return None

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """Make the mask of a sparsity.

        Args:
            problem: network and current mask.
            scores: scores of all prunable weights.
            sparsity: fraction to remove, in [0, 1).
            cost: the quantity that `sparsity` is a fraction of; None for prunable weights.

        Returns:
            A mask that keeps nothing that `problem.mask` removes.

        Raises:
            ValueError: if the sparsity cannot be reached, or a cost is given and `compacts` is False.
        """
        raise NotImplementedError

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        """Check that `problem.mask` is a mask of this granularity and sparsity: exactly round(sparsity · n) of n weights masked.

        Raises:
            RuntimeError: if it is not.
        """
        self.refuse(cost)
        masked = sum(int((~m).sum()) for m in problem.mask.values())
        total = sum(m.numel() for m in problem.mask.values())
        wanted = count_masked(sparsity, total)
        if masked != wanted:
            raise RuntimeError(f"the mask keeps {total - masked} weights, but sparsity {sparsity} requires {total - wanted} of {total}")

    def compact(self, problem: Problem) -> Problem:
        """The problem with masked weights removed physically; the problem itself if `compacts` is False."""
        return problem

    def refuse(self, cost: Cost | None) -> None:
        """Raise ValueError if a cost is given and this granularity cannot make networks smaller."""
        if cost is not None and not self.compacts:
            raise ValueError(f"granularity '{self.name}' does not make networks smaller, so it cannot prune to a cost")
