"""A warning where a random choice, not the scores, decides which weights are removed."""

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import nn

from methods.core.interface import Problem, Scores

_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # model -> criteria that have warned


def warn_of_ties(problem: Problem, criterion: str, scores: Scores) -> None:
    """Warn if more than half of the kept weights have the same score, unless these weights have the same value too.

    Weights that are zero are left out, e.g. those of an earlier mask that may grow again. There is one warning for a model and a
    criterion, also if it is scored in many rounds.

    Args:
        problem: network and current mask.
        criterion: name of the criterion.
        scores: its scores.
    """
    if criterion in _warned.get(problem.model, ()) or not scores.values:  # scores of whole channels are not compared here
        return
    weights = {n: w.detach() for n, w in problem.weights.items()}
    counted = {n: problem.mask[n] & (w != 0) for n, w in weights.items()}
    values = torch.cat([s[counted[n]] for n, s in scores.values.items()])
    if not len(values):
        return
    same = values == values.median()  # the value of more than half is the median
    share = float(same.double().mean())
    if share <= 0.5:
        return
    tied = torch.cat([weights[n][counted[n]] for n in scores.values])[same]
    if bool((tied != tied[0]).any()):
        _warned.setdefault(problem.model, set()).add(criterion)
        warnings.warn(f"'{criterion}' gives {share:.0%} of the weights the same score; ties are broken at random", stacklevel=2)
