"""A warning where a random choice, not the scores, decides which weights are removed."""

import math
import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from methods.core.interface import Problem, Scores

SAMPLE = 1 << 16  # weights that are looked at, at most
_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # model -> criteria that have warned


def warn_of_ties(problem: Problem, criterion: str, scores: Scores) -> None:
    """Warn if more than half of the kept weights have the same score, unless these weights have the same value too.

    Weights that are zero are left out, e.g. those of an earlier mask that may grow again. In a large network a random `SAMPLE` of the
    weights is looked at, because some criteria score in many rounds. There is one warning for a model and a criterion.

    Args:
        problem: network and current mask.
        criterion: name of the criterion.
        scores: its scores.
    """
    if criterion in _warned.get(problem.model, ()) or not scores.values:  # scores of whole channels are not compared here
        return
    weights = {n: w.detach().flatten() for n, w in problem.weights.items()}
    share, draws = SAMPLE / sum(map(len, weights.values())), problem.generator("ties looked at")
    looked = {n: _some(len(w), share, draws).to(w.device) for n, w in weights.items()}
    looked = {n: i[problem.mask[n].flatten()[i] & (weights[n][i] != 0)] for n, i in looked.items()}
    values = torch.cat([s.flatten()[looked[n]] for n, s in scores.values.items()])
    if not len(values):
        return
    same = values == values.median()  # the value of more than half is the median
    equal = float(same.double().mean())
    if equal <= 0.5:
        return
    tied = torch.cat([weights[n][looked[n]] for n in scores.values])[same]
    if bool((tied != tied[0]).any()):
        _warned.setdefault(problem.model, set()).add(criterion)
        warnings.warn(f"'{criterion}' gives {equal:.0%} of the weights the same score; ties are broken at random", stacklevel=2)


def _some(count: int, share: float, draws: torch.Generator) -> Tensor:
    """All indices below `count`, or a random sample of this share of them."""
    return torch.arange(count) if share >= 1.0 else torch.randint(count, (math.ceil(share * count),), generator=draws)
