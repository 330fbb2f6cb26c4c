"""The checks of a criterion: what it returns, and that it leaves the model and all random states unchanged."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.checking.fixtures import Batches, Breach, ConvNet, Skip, mlp, problem_of, require, same, tied, weight
from methods.checking.granularity_clauses import SPARSITIES
from methods.core.configurations import Criterion, Granularity
from methods.core.cutting import Pruner, cut, faults
from methods.core.interface import Problem, Scores, Stage, count_masked
from methods.core.masks import Mask, kept_weights, mask_holds
from methods.core.modes import evaluating
from methods.core.recipe import Recipe
from methods.core.regrowth import Regrowing
from methods.core.schedule import Gradual, Regrowth, Schedule
from methods.core.training_loop import fit
from methods.registry.registry import lookup, make, names


def _supported(criterion: Criterion) -> list[Problem]:
    problems = [p for p in map(problem_of, (ConvNet, mlp, tied)) if criterion.unsupported(p) is None]
    require(problems, "must support a small convolutional network or an MLP")
    return problems


def _raw_score(problem: Problem, criterion: Criterion) -> Scores:
    with evaluating(problem.model):
        return criterion.score(problem)


def _stages(entry: type[Criterion]) -> None:
    require(entry.stages and all(isinstance(s, Stage) for s in entry.stages), "stages must be a non-empty tuple of Stage values")


def _scores_are_sound(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        scores = _raw_score(problem, entry())
        require(isinstance(scores, Scores), f"score must return Scores, not {type(scores).__name__}")
        require(not faults(problem, scores), faults(problem, scores))


def _model_untouched(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        model = problem.model
        model.eval()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = copy.deepcopy(model.state_dict())
        flags = [(p.requires_grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        hooks = _hooks(model)
        entry().score(problem)
        require(same(before, model.state_dict()), "score must not change the model's parameters or buffers")
        require(all(not m.training for m in model.modules()), "score must leave the model in eval mode")
        for (wanted, grad), p in zip(flags, model.parameters(), strict=True):
            require(p.requires_grad == wanted, "score must not change requires_grad of a parameter")
            require(p.grad is not None and torch.equal(p.grad, grad), "score must not change the .grad of a parameter")
        require(_hooks(model) == hooks, "score must remove its hooks from the model")


def _hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, table)) for m in model.modules() for table in tables)


def _random_state_untouched(entry: type[Criterion]) -> None:
    problem = _supported(entry())[0]
    before = _global_random()
    _raw_score(problem, entry())
    for library, state in _global_random().items():
        require(state == before[library], f"score must draw from problem.generator, not from {library}'s global random state")


def _global_random() -> dict[str, object]:
    _, keys, *rest = np.random.get_state()
    numpy_state = np.asarray(keys).tobytes(), *rest
    return {"torch": torch.get_rng_state().numpy().tobytes(), "python": random.getstate(), "numpy": numpy_state}


def _same_seed_same_scores(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        first, second = _tensors(_raw_score(problem, entry())), _tensors(_raw_score(problem, entry()))
        require(same(first, second), "score must return the same scores for the same seed")


def _tensors(scores: Scores) -> dict[str, Tensor]:
    """All scores, of weights and of output channels."""
    return scores.values | {f"rows of {n}": r for n, r in (scores.rows or {}).items()}


def _nested_is_true(entry: type[Criterion]) -> None:
    if not entry().nested:
        raise Skip("nested = False")
    for problem in _supported(entry()):
        dense = _tensors(_raw_score(problem, entry()))
        for target in SPARSITIES[1:]:
            require(same(dense, _tensors(_raw_score(replace(problem, target=target), entry()))),
                     "nested must be False: the scores depend on the target")  # fmt: skip


def _rounds_lead_to_the_target(entry: type[Criterion]) -> None:
    for start, target in ((0.0, 0.0), (0.0, 0.9), (0.5, 0.5), (0.5, 0.99)):
        rounds = entry().rounds(start, target)
        require(rounds and rounds[-1] == target, f"rounds({start}, {target}) must end at {target}; it returned {rounds}")
        require(list(rounds) == sorted(rounds) and rounds[0] >= start, f"rounds({start}, {target}) must rise; it returned {rounds}")


def _fits_its_granularities(entry: type[Criterion]) -> None:
    for name in entry().granularities:
        require(name in names("granularities"), f"granularities contains '{name}', which is not a registered granularity")
    for problem in _supported(entry()):
        scores = _raw_score(problem, entry())
        only_rows = not scores.values and scores.rows is not None
        require(
            not only_rows or entry().granularities == ("channel",), "granularities must be ('channel',): it scores output channels only"
        )


def _granularity(criterion: Criterion) -> Granularity:
    """Unstructured pruning, or the first granularity that the criterion is defined for."""
    made: Granularity = make("granularities", criterion.granularities[0], {}) if criterion.granularities else weight()
    return made


def _counts_are_exact(entry: type[Criterion]) -> None:
    granularity = _granularity(entry())
    for problem in _supported(entry()):
        for sparsity in SPARSITIES:
            again = replace(problem, model=copy.deepcopy(problem.model))
            try:
                mask = cut(again, entry(), granularity, sparsity)
            except ValueError:  # whole channels do not reach every sparsity
                require(granularity.compacts and sparsity > 0.5, f"cut must accept sparsity {sparsity}")
            else:
                _require_sparsity(replace(again, mask=mask), granularity, sparsity)


def _counts_are_exact_during_training(entry: type[Criterion]) -> None:
    if Stage.DURING not in entry.stages:
        raise Skip("is not applied during training")
    granularity = _granularity(entry())
    sparsity = 0.5 if granularity.compacts else 0.9
    for problem in _supported(entry()):
        gradual = [Gradual(begin=0.0, end=0.8, persistent=persistent) for persistent in (True, False)]
        schedules: list[Schedule] = [Regrowth()] if issubclass(entry, Regrowing) else [*gradual]
        for schedule in schedules:
            again = replace(problem, model=copy.deepcopy(problem.model))
            fit(again, lookup("trainings", "map")(), Recipe(epochs=4), pruner=Pruner(entry(), granularity, schedule, sparsity))  # type: ignore[arg-type]
            _require_sparsity(again, granularity, sparsity)
            require(mask_holds(again.model, again.mask), "masked weights must be zero after training")


def _require_sparsity(problem: Problem, granularity: Granularity, sparsity: float) -> None:
    """Exact counts of single weights; of other granularities what their own check accepts."""
    if granularity.name == "weight":
        _require_count(problem.mask, sparsity)
    try:
        granularity.check(problem, sparsity)
    except RuntimeError as error:
        raise Breach(str(error)) from error


def _require_count(mask: Mask, sparsity: float) -> None:
    kept, total = kept_weights(mask)
    wanted = total - count_masked(sparsity, total)
    require(kept == wanted, f"the mask of sparsity {sparsity} must keep {wanted} of {total} weights, not {kept}")


def _data_free_is_true(entry: type[Criterion]) -> None:
    if not entry.data_free:
        raise Skip("reads training batches")
    for problem in _supported(entry()):
        _raw_score(replace(problem, batches=Batches(allowed=False)), entry())


CRITERION: dict[str, Callable[[Any], None]] = {
    "stages are declared": _stages,
    "scores are finite and have the names and shapes of the weights": _scores_are_sound,
    "score leaves model, gradients and hooks unchanged": _model_untouched,
    "score leaves the global random state unchanged": _random_state_untouched,
    "the same seed gives the same scores": _same_seed_same_scores,
    "granularities are registered, and scores fit them": _fits_its_granularities,
    "nested = True: scores do not depend on the target": _nested_is_true,
    "rounds rise to the target": _rounds_lead_to_the_target,
    "masks have exact counts, also if all scores are equal": _counts_are_exact,
    "masks have exact counts after pruning during training": _counts_are_exact_during_training,
    "data_free = True: score reads no batches": _data_free_is_true,
}
