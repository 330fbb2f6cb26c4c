"""A network on its way through a job, as a value: each step takes one and returns the next."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from methods import Mask, Posterior, Problem

Measurement = dict[str, Any]  # columns of a Row, by name


@dataclass(frozen=True)
class Network:
    """A network at one step of a job, and the facts about it that its row needs.

    Training and cutting change the weights in place. A branch therefore starts from `copied()`.

    Attributes:
        problem: the network, its mask, its posterior and the training data: what methods see.
        train_seconds: wall-clock seconds of all trainings up to this step.
        training_flops: FLOPs of all steps of these trainings, see `bench.trial.training_cost`.
        score_seconds: wall-clock seconds of scoring and cutting; None if nothing was scored, or if the training did it.
        dense_at_chance: whether the dense network it was cut from predicts no better than the most frequent class.
        kept_by_cut: the number of weights that the cut kept; None before the cut.
        whole_mask: the mask of the whole network, if `problem` holds a smaller one; otherwise None.
        latencies: the columns `latency_ms` and `dense_latency_ms` in milliseconds; empty if they were not timed.
    """

    problem: Problem
    train_seconds: float = 0.0
    training_flops: int = 0
    score_seconds: float | None = None
    dense_at_chance: bool = False
    kept_by_cut: int | None = None
    whole_mask: Mask | None = None
    latencies: dict[str, float] = field(default_factory=dict)

    def copied(self) -> "Network":
        """The same network with its own copy of the weights. The mask and the posterior are shared."""
        return self.with_problem(model=copy.deepcopy(self.problem.model))

    def with_problem(self, **changes: Any) -> "Network":
        """The same network with these fields of its `problem` replaced."""
        return replace(self, problem=replace(self.problem, **changes))


def posterior_to(posterior: Posterior, device: torch.device) -> Posterior:
    """The same posterior with its tensors on a device."""
    prior = {n: v.to(device) for n, v in posterior.prior.items()}
    factors = {n: (b.to(device), a.to(device)) for n, (b, a) in posterior.factors.items()}
    return replace(posterior, prior=prior, curvature={n: v.to(device) for n, v in posterior.curvature.items()}, factors=factors)
