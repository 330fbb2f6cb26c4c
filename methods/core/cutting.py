"""From scores to a pruned network. Criteria are called, and masks are made and applied, here only."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.core.acting import acting_afterwards, check_acting, known_to_act
from methods.core.configurations import Criterion, Granularity
from methods.core.filters import filters
from methods.core.interface import Cost, Problem, Scores, count_masked
from methods.core.masks import Mask, apply_mask, kept_weights, sparsity_of
from methods.core.modes import evaluating, unchanged_on_error
from methods.core.prunable import Prunable
from methods.core.reading import FAILURES, explaining, outputs_and_loss
from methods.core.regrowth import Regrowing, check_schedule
from methods.core.schedule import Lap, Move, Schedule
from methods.core.ties import warn_of_ties
from methods.core.unaltered import unaltered_network


def score(problem: Problem, criterion: Criterion, *, last: bool = True) -> Scores:
    """Score the prunable weights of a problem, and check the result.

    Args:
        problem: network, data and current mask.
        criterion: the criterion.
        last: whether no further round of scores follows; ties of earlier rounds are not looked for.

    Returns:
        The scores.

    Warns:
        UserWarning: if more than half of the kept weights have the same score, though not the same value; once for a model.

    Raises:
        ValueError: if the criterion does not support the network, the network or the loss fails on the data, weights that are
            set to zero would not stay zero, or the scores are not finite or do not have the names and shapes of the weights.
        Altered: if the criterion changes the network.
    """
    _check_supported(problem, criterion)
    weights = problem.weights
    with evaluating(problem.model, weights), torch.enable_grad():
        _rehearse(problem, weights, reads_data=not criterion.data_free)
        failing = explaining(problem.model, f"'{criterion.name}' fails on this network")
        with unaltered_network(problem.model, f"'{criterion.name}'"), failing:
            scores = criterion.score(problem)
    fault = _faults(problem, weights, scores)
    if fault:
        raise ValueError(f"'{criterion.name}' {fault}")
    if last:
        warn_of_ties(problem, criterion.name, scores)
    return scores


def rehearse(problem: Problem, reads_data: bool) -> None:
    """Check that weights that are set to zero stay zero in the network, by a forward pass of two samples if there are any.

    Call it inside `evaluating`.

    Args:
        problem: network and data.
        reads_data: whether data are needed, so that the loss must be defined too.

    Raises:
        ValueError: if the network or the loss fails on the data, or weights that are set to zero would not stay zero.
    """
    _rehearse(problem, problem.weights, reads_data)


def _rehearse(problem: Problem, weights: Prunable, reads_data: bool) -> None:
    """See `rehearse`; `weights`: those of the problem, whose search takes time."""
    if not reads_data and known_to_act(problem.model, weights, watched=True):
        return
    devices = [problem.device] if problem.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if reads_data:
            outputs_and_loss(problem.model, problem.loss, *problem.example)
        x = problem.example[0] if reads_data else _possible_inputs(problem)
        with explaining(problem.model, "the network cannot be differentiated"):
            check_acting(problem.model, weights, None if x is None else lambda: problem.model(x))


def _possible_inputs(problem: Problem) -> Tensor | None:
    """The inputs of the example if there are batches and the network takes them; where no data are needed, they may be anything."""
    try:
        problem.model(problem.example[0])
    except FAILURES:
        return None
    return problem.example[0]


def _check_supported(problem: Problem, criterion: Criterion) -> None:
    reason = criterion.unsupported(problem)
    if reason is not None:
        raise ValueError(f"'{criterion.name}' does not support this network: {reason}")


def _check_granularity(problem: Problem, criterion: Criterion, granularity: Granularity) -> None:
    reason = criterion.refusal(granularity)
    if reason is not None:
        raise ValueError(reason)
    reason = granularity.unsupported(problem)
    if reason is not None:
        raise ValueError(f"granularity '{granularity.name}' does not support this network: {reason}")


def faults(problem: Problem, scores: Scores) -> str:
    """The first error found in scores, in a few words; '' if they are valid."""
    return _faults(problem, problem.weights, scores)


def _faults(problem: Problem, weights: Prunable, scores: Scores) -> str:
    if not isinstance(scores, Scores) or not isinstance(scores.values, dict) or not isinstance(scores.rows, (dict, type(None))):
        return "must return methods.Scores of a dict: name -> tensor"
    if scores.rows is not None:
        outputs = {n: (len(f),) for n, f in filters(problem.model, weights).items()}
        odd = sorted(map(str, set(scores.rows) - set(outputs)))
        if odd or not scores.rows:
            return (
                f"must give rows of prunable Linear or convolutional weights only; extra: {', '.join(odd) or 'none, but there are no rows'}"
            )
        found = next(filter(None, (_fault(n, v, outputs[n], weights[n].device, "rows") for n, v in scores.rows.items())), "")
        if found or not scores.values:
            return found
    if set(scores.values) != set(weights):
        odd = sorted(map(str, set(scores.values) ^ set(weights)))
        return f"must score exactly the prunable weights; missing or extra: {', '.join(odd)}"
    return next(filter(None, (_fault(n, v, weights[n].shape, weights[n].device) for n, v in scores.values.items())), "")


def _fault(name: str, values: object, shape: tuple[int, ...], device: torch.device, kind: str = "scores") -> str:
    """The first error in the scores of one weight; '' if they are valid."""
    if not isinstance(values, Tensor) or values.layout != torch.strided or values.device != device:
        return f"must give '{name}' {kind} that are a dense tensor on the device of the weight"
    if values.shape != shape:
        return f"must give '{name}' {kind} of shape {tuple(shape)}, not {tuple(values.shape)}"
    if not values.is_floating_point() or values.requires_grad:
        return f"must give '{name}' {kind} that are a floating-point tensor without gradient"
    if not values.isfinite().all():
        return f"gives '{name}' {kind} that are not finite"
    return ""


def scored_once(criterion: Criterion) -> bool:
    """Whether a network needs to be scored only once for all sparsities, because nothing in the scores depends on the target."""
    return criterion.nested and len(criterion.rounds(0.0, 0.99)) == 1


def cut(
    problem: Problem,
    criterion: Criterion,
    granularity: Granularity,
    sparsity: float,
    scores: Scores | None = None,
    cost: Cost | None = None,
) -> Mask:
    """Prune the model of a problem in place.

    Afterwards masked weights are zero, and kept weights are unchanged or as `criterion.compensate` sets them. After an exception the
    model is as before.

    Args:
        problem: network, data and current mask.
        criterion: the criterion.
        granularity: the granularity.
        sparsity: fraction to remove, in [0, 1).
        scores: scores of a nested criterion, if they were computed before. Otherwise the criterion scores in each of its rounds,
            with the mask of the round before applied.
        cost: the quantity that the sparsities (also those of the rounds) are fractions of; None for prunable weights.

    Returns:
        The mask: name -> bool tensor, True = kept.

    Raises:
        ValueError: if the network is not supported or the sparsity cannot be reached.
    """
    _check_granularity(problem, criterion, granularity)
    rounds = (sparsity,) if scores is not None else criterion.rounds(_present(problem, granularity, cost), sparsity)
    with unchanged_on_error(problem.model):
        mask, weights = problem.mask, problem.weights
        apply_mask(problem.model, mask)
        for number, target in enumerate(rounds, 1):
            present = replace(problem, granularity=granularity, target=target, mask=mask)
            found = scores if scores is not None else score(present, criterion, last=number == len(rounds))
            mask = granularity.cut(present, found, target, cost)
            with evaluating(present.model, weights):
                criterion.compensate(present, mask, found.state)
            with acting_afterwards(present.model, weights):
                apply_mask(present.model, mask)
    return mask


def _present(problem: Problem, granularity: Granularity, cost: Cost | None) -> float:
    """The fraction removed by the current mask: of the prunable weights, or of the dense network's cost."""
    if cost is None or all(bool(m.all()) for m in problem.mask.values()):
        return sparsity_of(problem.mask)
    granularity.refuse(cost)
    return 1.0 - cost(granularity.compact(replace(problem, posterior=None)).model) / cost(problem.model)


@dataclass(frozen=True)
class Pruner:
    """How `methods.fit` prunes while it trains.

    Attributes:
        criterion: scores the weights at each cut.
        granularity: makes the masks.
        schedule: when to cut, and to which sparsity.
        sparsity: the final sparsity.
        cost: the quantity that the sparsities are fractions of; None for prunable weights.

    Raises:
        ValueError: if a criterion that regrows weights has another schedule than `Regrowth`, or another criterion has this schedule.
    """

    criterion: Criterion
    granularity: Granularity
    schedule: Schedule
    sparsity: float
    cost: Cost | None = None

    def __post_init__(self) -> None:
        check_schedule(self.criterion, self.schedule)

    def laps(self, problem: Problem, epochs: int) -> tuple[Lap, ...]:
        """The laps of the schedule, without the cuts that would remove nothing more than the current mask.

        Args:
            problem: network and current mask.
            epochs: length of the training.

        Raises:
            ValueError: if the schedule does not fit the number of epochs, the network is not supported, or the current mask
                removes more than `sparsity`.
        """
        kept, total = kept_weights(problem.mask)
        wanted = count_masked(self.sparsity, total)
        laps = self.schedule.laps(epochs, 1.0 - kept / total, self.sparsity)
        _check_supported(replace(problem, granularity=self.granularity), self.criterion)
        _check_granularity(problem, self.criterion, self.granularity)
        if wanted < total - kept:
            raise ValueError(f"sparsity {self.sparsity} is lower than the sparsity of the current mask, {1.0 - kept / total:.4g}")
        more = [{epoch: s for epoch, s in lap.cuts.items() if count_masked(s, total) > total - kept} for lap in laps]
        return tuple(replace(lap, cuts=cuts) for lap, cuts in zip(laps, more, strict=True))

    def moves(self, problem: Problem, steps: int) -> dict[int, Move]:
        """The changes of the mask between steps, without those that would change nothing.

        Args:
            problem: network and current mask.
            steps: number of steps of the training.

        Returns:
            Number of finished steps -> what changes then.
        """
        source = self.criterion if isinstance(self.criterion, Regrowing) else self.schedule
        kept, total = kept_weights(problem.mask)
        if not count_masked(self.sparsity, total):
            return {}  # nothing is removed, so nothing can grow
        moves = source.moves(steps, self.sparsity)
        return {t: m for t, m in moves.items() if m.share or count_masked(m.sparsity, total) > total - kept}
