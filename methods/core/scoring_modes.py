"""How normalisation layers act while a network is scored at initialisation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

MODES = ("eval", "train")
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@contextmanager
def scored_in(model: nn.Module, mode: str) -> Iterator[None]:
    """Context in which the norms of a network in eval mode act as scores at initialisation need them. All is restored at the end.

    A norm whose weights γ are all zero, as in the last norm of each residual branch of many networks at initialisation, has γ = 1:
    otherwise no gradient passes the branch, and all scores in it are zero.

    Args:
        model: the network, in eval mode. Dropout stays off.
        mode: "eval": batch norm uses its running statistics (at initialisation 0 and 1). "train": it uses those of the batch; the
            running ones do not change.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    zero = [m.weight for m in norms if isinstance(m.weight, nn.Parameter) and not bool(m.weight.detach().any())]
    modes = [(m, m.training, m.track_running_stats) for m in norms if isinstance(m, _NormBase)]
    try:
        with torch.no_grad():
            for p in zero:
                p.fill_(1.0)
        for m, _, _ in modes if mode == "train" else ():
            m.training, m.track_running_stats = True, False
        yield
    finally:
        for m, training, tracks in modes:
            m.training, m.track_running_stats = training, tracks
        with torch.no_grad():
            for p in zero:
                p.zero_()
