"""n:m patterns: at most n of every m consecutive weights along the input are kept, a format that hardware supports for 2:4."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.configurations import Granularity
from methods.core.hyperparameters import Int
from methods.core.interface import Cost, Groups, Problem, Scores
from methods.core.masks import Mask
from methods.core.prunable import summed
from methods.registry.registry import register

# Torch's semi-structured format requires a half-precision weight whose rows and columns are multiples of these.
ROWS, COLUMNS = 32, 64


@register("2:4")
@dataclass(frozen=True, kw_only=True)
class Pattern(Granularity):
    """Keep the n best-scored of every m consecutive weights along the input dimension.

    A group lies along the dimension that products sum over, as hardware reads it (see `methods.core.prunable.summed`): the input
    features of a Linear layer or a matrix of attention or a recurrent layer, the input channels of a convolution, transposed or not,
    separately for each position of the kernel and each group of channels. Layers whose number of inputs is not a multiple of m, and
    weights that are not multiplied as matrices (Bilinear, embeddings), stay dense.

    The pattern has one sparsity, 1 - n/m of the layers that it fits. Smaller sparsities (of intermediate rounds) remove the
    lowest-scored of the weights that the pattern will remove, ranked over all layers. Ties are broken at random by the problem's
    seed, independently of the sparsity.

    Reference: Mishra et al. 2021, "Accelerating sparse deep neural networks".
    """

    n: int = Int(2, minimum=1, meaning="weights kept in each group")
    m: int = Int(4, minimum=2, meaning="weights in each group")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            raise ValueError(f"the pattern {self.n}:{self.m} removes nothing: n must be smaller than m")

    @property
    def fixed_sparsity(self) -> float:
        """1 - n/m, a fraction of the layers that the pattern fits."""
        return 1.0 - self.n / self.m

    def groups(self, problem: Problem) -> dict[str, Groups]:
        """See `Granularity.groups`."""
        return {name: Groups(self.n, self.m, dim) for name, dim in self._along(problem).items()}

    def unsupported(self, problem: Problem) -> str | None:
        """A reason if no layer has a multiple of m inputs."""
        return None if self._along(problem) else f"no layer has a multiple of {self.m} inputs"

    def _along(self, problem: Problem) -> dict[str, int]:
        """Name of each weight that the pattern fits -> the dimension that groups lie along."""
        known = summed(problem.model)
        return {n: known[n][0] for n in problem.mask if n in known and known[n][1] % self.m == 0}

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """See `Granularity.cut`.

        Raises:
            ValueError: if the sparsity is above that of the pattern, no layer fits, or the current mask keeps fewer than n weights
                of a group.
        """
        self.refuse(cost)
        share = self._share(sparsity)
        if reason := self.unsupported(problem):
            raise ValueError(reason)
        mask = {name: m.clone() for name, m in problem.mask.items()}
        along = self._along(problem)
        generator = problem.generator("ties")
        ranked = {name: self._ranked(scores.values[name], mask[name], dim, generator) for name, dim in along.items()}
        for name, part in self._chosen(ranked, share).items():
            places, _ = ranked[name]
            dropped = torch.zeros(places.shape, dtype=torch.bool)
            dropped.scatter_(1, places[:, self.n :], part)
            before = ~self._groups(problem.mask[name], along[name]).cpu()
            if int((dropped & before).sum()) != int(before.sum()):
                raise ValueError(f"the current mask of '{name}' removes more than {self.n}:{self.m} at sparsity {sparsity}")
            mask[name] = self._weights(~dropped, mask[name].shape, along[name]).to(mask[name].device)
        return mask

    def _chosen(self, ranked: dict[str, tuple[Tensor, Tensor]], share: float) -> dict[str, Tensor]:
        """Name -> (groups, m - n): which of the weights that the pattern will remove are removed now, the lowest scores first."""
        losers = torch.cat([best_first[:, self.n :].flatten() for _, best_first in ranked.values()])
        order = torch.argsort(losers, stable=True)
        chosen = torch.zeros(len(losers), dtype=torch.bool)
        chosen[order[: round(share * len(losers))]] = True
        sizes = [places.shape[0] * (self.m - self.n) for places, _ in ranked.values()]
        return {name: part.view(-1, self.m - self.n) for name, part in zip(ranked, chosen.split(sizes), strict=True)}

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        """See `Granularity.check`.

        Raises:
            RuntimeError: if a group keeps fewer than n weights, a layer that the pattern does not fit is cut, or the number of removed
                weights is wrong.
        """
        self.refuse(cost)
        share = self._share(sparsity)
        total = removed = 0
        along = self._along(problem)
        for name, m in problem.mask.items():
            if name not in along:
                if not bool(m.all()):
                    raise RuntimeError(f"'{name}' is cut, but its number of inputs is not a multiple of {self.m}")
                continue
            kept = self._groups(m, along[name]).sum(1)
            if int(kept.min()) < self.n:
                raise RuntimeError(f"'{name}' keeps {int(kept.min())} of {self.m} weights in a group, but the pattern requires {self.n}")
            total += len(kept) * (self.m - self.n)
            removed += int((self.m - kept).sum())
        if removed != round(share * total):
            raise RuntimeError(f"the mask removes {removed} weights, but sparsity {sparsity} requires {round(share * total)}")

    def _share(self, sparsity: float) -> float:
        """The fraction of the weights removed by the pattern that is removed at a sparsity."""
        if not 0.0 <= sparsity <= self.fixed_sparsity:
            raise ValueError(f"{self.n}:{self.m} has sparsity {self.fixed_sparsity:g}: {sparsity:g} is not between 0 and this")
        return sparsity / self.fixed_sparsity

    def _groups(self, weight: Tensor, dim: int) -> Tensor:
        """(groups, m), with the dimension that products sum over as the last one before grouping."""
        return weight.movedim(dim, -1).reshape(-1, self.m)

    def _weights(self, groups: Tensor, shape: torch.Size, dim: int) -> Tensor:
        """The inverse of `_groups`."""
        rest = [n for d, n in enumerate(shape) if d != dim]
        return groups.reshape(*rest, shape[dim]).movedim(-1, dim).contiguous()

    def _ranked(self, scores: Tensor, mask: Tensor, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(places, scores) of each group, best first, each (groups, m) on the CPU. Masked weights come last."""
        values = self._groups(scores.detach().double().masked_fill(~mask, -torch.inf), dim).cpu()
        tie_breakers = torch.rand(values.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
        order = values.gather(1, tie_breakers).argsort(dim=1, descending=True, stable=True)
        places = tie_breakers.gather(1, order)
        return places, values.gather(1, places)


def semi_structured(model: nn.Module, mask: Mask) -> list[str]:
    """Convert 2:4-masked Linear weights into torch's semi-structured sparse format, in place.

    Args:
        model: a half-precision model on a GPU.
        mask: name -> bool tensor.

    Returns:
        The names of the converted weights: those that are masked and have a shape that the format supports.

    Raises:
        RuntimeError: if torch has no kernel for the device.
    """
    from torch.sparse import to_sparse_semi_structured

    converted = []
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, nn.Linear) and name in mask and not bool(mask[name].all()):
            rows, columns = module.weight.shape
            if rows % ROWS == 0 and columns % COLUMNS == 0:
                module.weight = nn.Parameter(to_sparse_semi_structured(module.weight.detach()), requires_grad=False)
                converted.append(name)
    return converted
