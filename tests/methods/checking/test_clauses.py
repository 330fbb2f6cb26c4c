"""The contract holds for everything registered, and catches every breach by the clause that names it."""

import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import methods
from methods import Cost, Criterion, Float, Granularity, Mask, Posterior, Problem, Scores, Stage, count_masked
from methods.granularity.channel import Channel
from methods.granularity.weight import Weight
from methods.registry import registry
from methods.registry.registry import KINDS
from methods.training.map import Map

configuration = dataclass(frozen=True, kw_only=True)

DECLARED = "hyperparameters are declared, defaults are allowed"
DOCUMENTED = "has a docstring"
STAGES = "stages are declared"
SOUND = "scores are finite and have the names and shapes of the weights"
UNTOUCHED = "score leaves model, gradients and hooks unchanged"
GLOBAL_STATE = "score leaves the global random state unchanged"
SEEDED = "the same seed gives the same scores"
GRANULARITIES = "granularities are registered, and scores fit them"
NESTED = "nested = True: scores do not depend on the target"
ROUNDS = "rounds rise to the target"
COUNTS = "masks have exact counts, also if all scores are equal"
ONLINE = "masks have exact counts after pruning during training"
DATA_FREE = "data_free = True: score reads no batches"

LEARNS = "the training loss decreases"
NAMES = "parameter names and shapes stay the same"
MASKS = "masked weights stay zero in training and fine-tuning"
REPEATS = "the same seed gives the same network"
POSTERIOR = "the posterior is finite, not negative and has the names of the parameters"
PENALTY = "the penalty is finite and not negative"

PROMISE = "cut makes masks that check accepts, also if all scores are equal"
INSIDE = "a later cut keeps no weight that an earlier one removed"
CHECKS = "check raises for a mask of the wrong sparsity"
COST = "a cost is reached, or refused if networks stay as large"
COMPACTS = "the smaller network computes the same outputs"


def broken(entry: Any) -> dict[str, str]:
    """Clause -> error, where there is one."""
    return {f.clause: f.error for f in methods.check(entry) if f.error}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in methods.names(kind)])
def test_everything_registered_keeps_the_contract(kind: str, name: str) -> None:
    findings = methods.check(methods.lookup(kind, name))
    assert [f for f in findings if f.error] == []
    assert [f.clause for f in findings if not f.skipped]
    assert {f.entry for f in findings} == {name}


# --- wrong criteria --------------------------------------------------------------------------------------------------


@configuration
class Honest(Criterion):
    """s = |w|: keeps every clause. Each wrong criterion below is this one with a single fault."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.detach().abs() for n, w in problem.weights.items()})


@configuration
class NotANumber(Honest):
    """One score is NaN."""

    def score(self, problem: Problem) -> Scores:
        scores = super().score(problem)
        next(iter(scores.values.values())).view(-1)[0] = torch.nan
        return scores


@configuration
class Flat(Honest):
    """Scores lose their shape."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: s.flatten() for n, s in super().score(problem).values.items()})


@configuration
class Forgetful(Honest):
    """The last weight is not scored."""

    def score(self, problem: Problem) -> Scores:
        return Scores(dict(list(super().score(problem).values.items())[:-1]))


@configuration
class Generous(Honest):
    """Biases are scored too."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: p.detach().abs() for n, p in problem.model.named_parameters()})


@configuration
class OfChannels(Honest):
    """Scores output channels: keeps every clause. The wrong ones below are this one with a single fault."""

    @property
    def granularities(self) -> tuple[str, ...]:
        return ("channel",)

    def score(self, problem: Problem) -> Scores:
        return Scores(rows={n: w.detach().flatten(1).norm(dim=1) for n, w in problem.weights.items()})


@configuration
class RowsOfInputs(OfChannels):
    """One score for each input channel."""

    def score(self, problem: Problem) -> Scores:
        return Scores(rows={n: w.detach().transpose(0, 1).flatten(1).norm(dim=1) for n, w in problem.weights.items()})


@configuration
class RowsOfBiases(OfChannels):
    """Rows of parameters that are not prunable."""

    def score(self, problem: Problem) -> Scores:
        return Scores(rows={n: p.detach().abs() for n, p in problem.model.named_parameters() if p.dim() == 1})


@configuration
class InfiniteRows(OfChannels):
    """A row score is infinite."""

    def score(self, problem: Problem) -> Scores:
        scores = super().score(problem)
        next(iter((scores.rows or {}).values()))[0] = torch.inf
        return scores


@configuration
class RowsAtRandom(OfChannels):
    """Row scores differ from call to call."""

    def score(self, problem: Problem) -> Scores:
        generator = torch.Generator().manual_seed(random.randrange(10**6))
        return Scores(rows={n: torch.rand(len(w), generator=generator) for n, w in problem.weights.items()})


@configuration
class RowsOfTheTarget(OfChannels):
    """Row scores depend on the target, but nested = True."""

    def score(self, problem: Problem) -> Scores:
        return Scores(rows={n: r + problem.target for n, r in (super().score(problem).rows or {}).items()})


@configuration
class RowsEverywhere(OfChannels):
    """Scores output channels, but claims to be defined for single weights."""

    @property
    def granularities(self) -> tuple[str, ...]:
        return ()


@configuration
class Misspelt(OfChannels):
    """A granularity that does not exist."""

    @property
    def granularities(self) -> tuple[str, ...]:
        return ("channels",)


@configuration
class Attached(Honest):
    """Scores drag the graph along."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.abs() for n, w in problem.weights.items()})


@configuration
class Counting(Honest):
    """Scores are integers."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: (1000 * s).long() for n, s in super().score(problem).values.items()})


@configuration
class Bare(Honest):
    """A dictionary is returned, not Scores."""

    def score(self, problem: Problem) -> Any:
        return super().score(problem).values


@configuration
class ChangesWeights(Honest):
    """Weights are normalised in place."""

    def score(self, problem: Problem) -> Scores:
        with torch.no_grad():
            for w in problem.weights.values():
                w.div_(w.norm())
        return super().score(problem)


@configuration
class MovesBatchNorm(Honest):
    """A forward pass in train mode moves the running statistics."""

    def score(self, problem: Problem) -> Scores:
        problem.model.train()
        problem.model(next(iter(problem.batches))[0])
        problem.model.eval()
        return super().score(problem)


@configuration
class LeavesGradients(Honest):
    """`backward` accumulates into .grad."""

    def score(self, problem: Problem) -> Scores:
        x, y = next(iter(problem.batches))
        problem.loss(problem.model(x), y).backward()
        return super().score(problem)


@configuration
class ClearsGradients(Honest):
    """The caller's .grad are thrown away."""

    def score(self, problem: Problem) -> Scores:
        problem.model.zero_grad()
        return super().score(problem)


@configuration
class Freezes(Honest):
    """requires_grad is switched off."""

    def score(self, problem: Problem) -> Scores:
        problem.model.requires_grad_(False)
        return super().score(problem)


@configuration
class LeavesHook(Honest):
    """A forward hook stays."""

    def score(self, problem: Problem) -> Scores:
        next(problem.model.children()).register_forward_hook(lambda *_: None)
        return super().score(problem)


@configuration
class LeavesTrainMode(Honest):
    """The model is left in train mode."""

    def score(self, problem: Problem) -> Scores:
        problem.model.train()
        return super().score(problem)


@configuration
class DrawsFromTorch(Honest):
    """One draw from torch's global stream."""

    def score(self, problem: Problem) -> Scores:
        torch.rand(())
        return super().score(problem)


@configuration
class DrawsFromPython(Honest):
    """One draw from Python's global stream."""

    def score(self, problem: Problem) -> Scores:
        random.random()
        return super().score(problem)


@configuration
class DrawsFromNumpy(Honest):
    """One draw from numpy's global stream."""

    def score(self, problem: Problem) -> Scores:
        np.random.rand()
        return super().score(problem)


@configuration
class Unseeded(Honest):
    """A generator of its own, with a seed from the system."""

    def score(self, problem: Problem) -> Scores:
        generator = torch.Generator()
        generator.seed()
        return Scores({n: torch.rand(w.shape, generator=generator) for n, w in problem.weights.items()})


@configuration
class DependsOnTarget(Honest):
    """Nested by declaration, but the target enters."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: (s - problem.target).abs() for n, s in super().score(problem).values.items()})


@configuration
class StopsShort(Honest):
    """The last round is not at the target."""

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        return present, 0.5 * (present + target)


@configuration
class FallsBack(Honest):
    """A round keeps more than the one before."""

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        return 1.1 * target, target


@configuration
class ReadsData(Honest):
    """Data-free by declaration, but the batches are read."""

    data_free: ClassVar = True

    def score(self, problem: Problem) -> Scores:
        next(iter(problem.batches))
        return super().score(problem)


@configuration
class NoRange(Honest):
    """A hyperparameter without a range."""

    power: float = 1.0


@configuration
class OutOfRange(Honest):
    """A default outside its own limits."""

    power: float = Float(2.0, maximum=1)


@configuration
class NotSearched(Honest):
    """A default that tuning would never draw."""

    power: float = Float(2.0, 0.0, 1.0)


@configuration
class NoWords(Honest):
    pass


@configuration
class NeverEqual(Honest):
    """Two instances with the same hyperparameters differ."""

    def __eq__(self, other: object) -> bool:
        return self is other


class Undecorated(Honest):
    """No dataclass of its own, so that its hyperparameter is none."""

    power: float = Float(1.0, 0.0, 2.0)


@configuration
class NoStage(Honest):
    """Applicable nowhere."""

    stages: ClassVar = ()


@configuration
class WordsForStages(Honest):
    """Stages as plain strings."""

    stages: ClassVar = ("after",)


@configuration
class Revives(Honest):
    """`compensate` puts masked weights back."""

    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        for m in mask.values():
            m.fill_(True)


@configuration
class Raises(Honest):
    """Never scores anything."""

    def score(self, problem: Problem) -> Scores:
        raise RuntimeError("no luck today\nand more lines")


@configuration
class WantsFinishedPosterior(Honest):
    """Takes curvature for granted, which only a finished training leaves."""

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    def score(self, problem: Problem) -> Scores:
        if problem.posterior is None:
            return super().score(problem)
        return Scores({n: problem.posterior.precision(n) * w.detach().square() for n, w in problem.weights.items()})


@configuration
class RevivesWhileTraining(Revives):
    """The same, where it may be applied while training."""

    stages: ClassVar = (Stage.AFTER, Stage.DURING)


@configuration
class SupportsNothing(Honest):
    """Declines every network."""

    def unsupported(self, problem: Problem) -> str | None:
        return "not today"


WRONG_CRITERIA = [
    (NotANumber, SOUND, "are not finite"),
    (Flat, SOUND, "must give 'conv1.weight' scores of shape (4, 3, 3, 3), not (108,)"),
    (Forgetful, SOUND, "missing or extra: head.weight"),
    (Generous, SOUND, "missing or extra: bn.bias, bn.weight"),
    (Attached, SOUND, "without gradient"),
    (Counting, SOUND, "must give 'conv1.weight' scores that are a floating-point tensor without gradient"),
    (Bare, SOUND, "score must return Scores, not dict"),
    (ChangesWeights, UNTOUCHED, "must not change the model's parameters or buffers"),
    (MovesBatchNorm, UNTOUCHED, "must not change the model's parameters or buffers"),
    (LeavesGradients, UNTOUCHED, "must not change the .grad"),
    (ClearsGradients, UNTOUCHED, "must not change the .grad"),
    (Freezes, UNTOUCHED, "must not change requires_grad"),
    (LeavesHook, UNTOUCHED, "must remove its hooks"),
    (LeavesTrainMode, UNTOUCHED, "must leave the model in eval mode"),
    (DrawsFromTorch, GLOBAL_STATE, "torch's global random state"),
    (DrawsFromPython, GLOBAL_STATE, "python's global random state"),
    (DrawsFromNumpy, GLOBAL_STATE, "numpy's global random state"),
    (Unseeded, SEEDED, "must return the same scores for the same seed"),
    (DependsOnTarget, NESTED, "depend on the target"),
    (StopsShort, ROUNDS, "must end at"),
    (FallsBack, ROUNDS, "must rise"),
    (ReadsData, DATA_FREE, "reads the batches"),
    (NoRange, DECLARED, "field 'power' must be declared by Float, Int or Choice"),
    (OutOfRange, DECLARED, "default power=2.0 is not a finite number <= 1"),
    (NotSearched, DECLARED, "default power=2.0 is outside its search range: a number in [0, 1]"),
    (NeverEqual, DECLARED, "are not equal"),
    (Undecorated, DECLARED, "must be decorated with @dataclass(frozen=True"),
    (NoWords, DOCUMENTED, "must have a docstring"),
    (NoStage, STAGES, "non-empty tuple of Stage"),
    (WordsForStages, STAGES, "non-empty tuple of Stage"),
    (Revives, COUNTS, "of sparsity 0.5 must keep 243 of 486 weights, not 486"),
    (WantsFinishedPosterior, ONLINE, "raised KeyError"),
    (RevivesWhileTraining, ONLINE, "of sparsity 0.9 must keep 49 of 486 weights, not 486"),
    (SupportsNothing, SOUND, "must support a small"),
    (RowsOfInputs, SOUND, "must give 'conv1.weight' rows of shape (4,), not (3,)"),
    (RowsOfBiases, SOUND, "must give rows of prunable Linear or convolutional weights only; extra: bn.bias"),
    (InfiniteRows, SOUND, "gives 'conv1.weight' rows that are not finite"),
    (RowsAtRandom, SEEDED, "must return the same scores"),
    (RowsOfTheTarget, NESTED, "nested must be False"),
    (RowsEverywhere, GRANULARITIES, "must be ('channel',): it scores output channels only"),
    (Misspelt, GRANULARITIES, "granularities contains 'channels', which is not a registered granularity"),
]


@pytest.mark.parametrize("honest", [Honest, OfChannels])
def test_the_honest_criterion_keeps_every_clause(honest: type[Criterion]) -> None:
    assert broken(honest) == {}


@pytest.mark.parametrize(("wrong", "clause", "message"), WRONG_CRITERIA, ids=lambda v: getattr(v, "__name__", ""))
def test_a_wrong_criterion_is_caught_by_the_clause_it_breaks(wrong: type[Criterion], clause: str, message: str) -> None:
    errors = broken(wrong)
    assert message in errors[clause]
    assert all("\n" not in error for error in errors.values())


def test_a_criterion_that_raises_is_a_finding_of_one_line() -> None:
    errors = broken(Raises)
    assert {SOUND, UNTOUCHED, GLOBAL_STATE, SEEDED, NESTED, COUNTS} <= set(errors)
    assert set(errors.values()) == {"raised RuntimeError: no luck today"}


def test_clauses_that_do_not_apply_are_skipped_with_the_reason() -> None:
    @configuration
    class Honestly(DependsOnTarget):
        """The target enters, and it says so."""

        nested: ClassVar = False

    skipped = {f.clause: f.skipped for f in methods.check(Honestly) if f.skipped}
    wanted = {NESTED: "nested = False", ONLINE: "is not applied during training", DATA_FREE: "reads training batches"}
    assert skipped == wanted
    assert broken(Honestly) == {}


# --- wrong trainings -------------------------------------------------------------------------------------------------


@configuration
class Renames(Map):
    """The re-parametrisation is not undone."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        parametrize.register_parametrization(problem.model.head, "weight", nn.Identity())
        return state


@configuration
class RevivesAtTheEnd(Map):
    """`finish` moves all weights, masked ones too."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        with torch.no_grad():
            for w in problem.weights.values():
                w.add_(1e-3)
        return state


@configuration
class UnseededStart(Map):
    """Starts from weights of its own, drawn anew each time."""

    def prepare(self, problem: Problem) -> Posterior:
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            for w in problem.weights.values():
                w.copy_(0.1 * torch.randn(w.shape, generator=generator))
        return super().prepare(problem)


@configuration
class UnseededPrior(Map):
    """The same weights, a prior drawn anew each time."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        generator = torch.Generator()
        generator.seed()
        return replace(state, prior={n: torch.rand((), generator=generator) for n in state.prior})


@configuration
class NegativePrior(Map):
    """Negative precisions."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        return replace(state, prior={n: -d for n, d in state.prior.items()})


@configuration
class InfiniteCurvature(Map):
    """Curvature without bound."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        return replace(state, curvature={n: torch.full_like(w, torch.inf) for n, w in problem.weights.items()})


@configuration
class ForeignName(Map):
    """A prior on a parameter that is not there."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        return replace(state, prior={**state.prior, "tail.weight": torch.ones(())})


@configuration
class WrongShape(Map):
    """One precision a row."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        return replace(state, prior={"head.weight": torch.ones(3)})


@configuration
class NoPosterior(Map):
    """Returns the prior alone."""

    def finish(self, problem: Problem, state: Posterior) -> Any:
        return state.prior


@configuration
class Unlearns(Map):
    """The head is turned around at the end."""

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        with torch.no_grad():
            problem.model.head.weight.mul_(-10.0)
        return state


@configuration
class NegativePenalty(Map):
    """Rewards large weights."""

    def penalty(self, parameters: Any, state: Posterior) -> torch.Tensor:
        return -sum(p.square().sum() for p in parameters.values())


@configuration
class PenaltyVector(Map):
    """A penalty that is no scalar."""

    def penalty(self, parameters: Any, state: Posterior) -> torch.Tensor:
        return next(iter(parameters.values())).sum().view(1)


@configuration
class PenaltyWhileTraining(Map):
    """A wrong penalty that ends with the training."""

    def prepare(self, problem: Problem) -> Posterior:
        return replace(super().prepare(problem), marginal_likelihood=(0.0,))

    def penalty(self, parameters: Any, state: Posterior) -> torch.Tensor | None:
        return -sum(p.square().sum() for p in parameters.values()) if state.marginal_likelihood else None

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        return replace(state, marginal_likelihood=())


WRONG_TRAININGS = [
    (Renames, NAMES, "parameter names and shapes must be the same"),
    (RevivesAtTheEnd, MASKS, "must be zero after training"),
    (UnseededStart, REPEATS, "the same seed must give the same weights"),
    (UnseededPrior, REPEATS, "the same seed must give the same posterior"),
    (NegativePrior, POSTERIOR, "must be finite and not negative"),
    (InfiniteCurvature, POSTERIOR, "must be finite and not negative"),
    (ForeignName, POSTERIOR, "'tail.weight', which is not a parameter"),
    (WrongShape, POSTERIOR, "'head.weight' must be a scalar or have its shape, not (3,)"),
    (NoPosterior, POSTERIOR, "finish must return a Posterior, not dict"),
    (Unlearns, LEARNS, "the training loss must decrease"),
    (NegativePenalty, PENALTY, "must return a finite scalar >= 0"),
    (PenaltyVector, PENALTY, "must return a finite scalar >= 0"),
    (PenaltyWhileTraining, PENALTY, "must return a finite scalar >= 0"),
]


@pytest.mark.parametrize(("wrong", "clause", "message"), WRONG_TRAININGS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_wrong_training_is_caught_by_the_clause_it_breaks(wrong: type[Map], clause: str, message: str) -> None:
    assert message in broken(wrong)[clause]


# --- wrong granularities ---------------------------------------------------------------------------------------------


@configuration
class Threshold(Granularity):
    """Removes `score <= threshold`: every tie with the threshold goes."""

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        self.refuse(cost)
        flat = torch.cat([(s * problem.mask[n]).flatten() for n, s in scores.values.items()])
        k = count_masked(sparsity, flat.numel())
        threshold = flat.kthvalue(k).values if k else -torch.inf
        return {n: (s > threshold) & problem.mask[n] for n, s in scores.values.items()}


@configuration
class Credulous(Weight):
    """Its check takes any mask."""

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        pass


@configuration
class DeafToCost(Weight):
    """A cost is taken for the number of weights, and no network gets smaller."""

    def refuse(self, cost: Cost | None) -> None:
        pass


@configuration
class CutsLess(Channel):
    """Channels, but for half of the sparsity."""

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        return super().cut(problem, scores, sparsity / 2, cost)


@configuration
class RemovesOthers(Channel):
    """The smaller network keeps the first channels, not the ones the mask keeps."""

    def compact(self, problem: Problem) -> Problem:
        smaller = super().compact(problem)
        for name, p in smaller.model.named_parameters():
            whole = problem.model.get_parameter(name)
            p.data = whole.data[tuple(slice(n) for n in p.shape)].clone()
        return smaller


@configuration
class RemovesNothing(Channel):
    """The masked network is called the smaller one."""

    def compact(self, problem: Problem) -> Problem:
        return problem


@configuration
class TurnsAround(Granularity):
    """Exact, but a second cut keeps what the first one removed."""

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        self.refuse(cost)
        first = all(bool(m.all()) for m in problem.mask.values())
        values = {n: s if first else (~problem.mask[n]).float() for n, s in scores.values.items()}
        return methods.make("granularities", "weight", {}).cut(Problem(problem.model, ()), Scores(values), sparsity)


@configuration
class IgnoresTheMask(Granularity):
    """Exact, but blind to what was removed before: other scores would revive it."""

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        self.refuse(cost)
        return methods.make("granularities", "weight", {}).cut(Problem(problem.model, ()), scores, sparsity)


def test_a_threshold_cut_is_caught_where_scores_are_equal() -> None:
    errors = broken(Threshold)
    assert "made for sparsity 0.5: the mask keeps 0 weights" in errors[PROMISE]
    assert {INSIDE, CHECKS, COST, COMPACTS}.isdisjoint(errors)


@pytest.mark.parametrize("wrong", [TurnsAround, IgnoresTheMask])
def test_a_cut_that_revives_masked_weights_is_caught(wrong: type[Granularity]) -> None:
    errors = broken(wrong)
    assert PROMISE not in errors
    assert "a second cut must not keep weights that the first one removed" in errors[INSIDE]


@pytest.mark.parametrize(
    ("wrong", "clause", "message"),
    [
        (Credulous, CHECKS, "check must raise for a mask of the wrong sparsity; it accepted sparsity 0.00 when 0.5 was requested"),
        (DeafToCost, COST, "must raise ValueError for a cost, because compacts = False"),
        (CutsLess, PROMISE, "made for sparsity 0.5: the mask has sparsity 0.2593"),
        (RemovesOthers, COMPACTS, "must compute the outputs of the masked one; they differ by"),
        (RemovesNothing, COMPACTS, "the smaller network must have 243 weights, not 486"),
    ],
)
def test_every_way_to_cut_or_remove_wrongly_is_caught(wrong: type[Granularity], clause: str, message: str) -> None:
    assert message in broken(wrong)[clause]


# --- what may be checked ---------------------------------------------------------------------------------------------


def test_a_name_of_several_kinds_is_checked_as_each_of_them() -> None:
    before = registry.snapshot()
    try:
        methods.register("weight")(configuration(type("Homonym", (Honest,), {"__doc__": Honest.__doc__})))
        clauses = [f.clause for f in methods.check("weight")]
    finally:
        registry.restore(before)
    assert {SOUND, INSIDE} <= set(clauses)
    assert {f.clause for f in methods.check("weight")} == {DECLARED, DOCUMENTED, PROMISE, INSIDE, CHECKS, COST, COMPACTS}


def test_every_method_can_be_checked_by_its_name() -> None:
    for name in set(methods.names()) - set(methods.names("criteria")):
        assert not broken(name)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'magnitud' \(did you mean 'magnitude'\?\)"):
        methods.check("magnitud")


def test_a_class_of_no_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="is not a Criterion, a Training or a Granularity"):
        methods.check(nn.Linear)  # type: ignore[arg-type]
