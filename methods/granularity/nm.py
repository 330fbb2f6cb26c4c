"""n:m patterns: of every m consecutive weights along the input at most n stay, as sparse matrix hardware reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.hyperparameters import Int
from methods.core.interface import Cost, Granularity, Mask, Problem, Scores
from methods.registry.registry import register

# What torch's semi-structured form asks of a half-precision weight: rows and columns are multiples of these.
ROWS, COLUMNS = 32, 64


@register("2:4")
@dataclass(frozen=True, kw_only=True)
class Pattern(Granularity):
    """Keep the n best-scored of every m consecutive weights along the input dimension (Mishra et al. 2021, "Accelerating sparse
    deep neural networks"): of a Linear layer its input features, of a convolution its input channels, at each place of the kernel.

    Layers whose inputs are not a multiple of m stay dense, and count as such. So there is one sparsity, 1 - n/m; below it, on the way
    there in rounds, the lowest of the weights that the pattern will remove go first, over all layers. Ties are broken by a seeded
    lot that does not depend on the sparsity.
    """

    n: int = Int(2, minimum=1, meaning="weights kept in each group")
    m: int = Int(4, minimum=2, meaning="weights in each group")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            raise ValueError(f"a pattern {self.n}:{self.m} keeps everything: n must be below m")

    @property
    def fixed_sparsity(self) -> float:
        """1 - n/m, of the layers that the pattern fits."""
        return 1.0 - self.n / self.m

    def unsupported(self, problem: Problem) -> str | None:
        """Where no layer has a multiple of m inputs."""
        fits = any(self.fits(w) for w in problem.weights.values())
        return None if fits else f"no layer has a number of inputs that {self.m} divides"

    def fits(self, weight: Tensor) -> bool:
        """Whether the pattern can be laid over a weight (out, in, *kernel)."""
        return weight.shape[1] % self.m == 0

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """See `Granularity.cut`. Raises ValueError above the pattern's own sparsity, where no layer fits, and where the present mask
        leaves fewer than n weights of a group."""
        self.refuse(cost)
        share = self._share(sparsity)
        if reason := self.unsupported(problem):
            raise ValueError(reason)
        mask = {name: m.clone() for name, m in problem.mask.items()}
        names = [name for name, m in mask.items() if self.fits(m)]
        generator = problem.generator("ties")
        ranked = {name: self._ranked(scores.values[name], mask[name], generator) for name in names}
        # Candidates are what the pattern will remove: in each group all but the n best.
        losers = torch.cat([best_first[:, self.n :].flatten() for _, best_first in ranked.values()])
        order = torch.argsort(losers, stable=True)
        doomed = torch.zeros(len(losers), dtype=torch.bool)
        doomed[order[: round(share * len(losers))]] = True
        for name, part in zip(names, doomed.split([r[0].shape[0] * (self.m - self.n) for r in ranked.values()]), strict=True):
            places, _ = ranked[name]
            gone = torch.zeros(places.shape, dtype=torch.bool)
            gone.scatter_(1, places[:, self.n :], part.view(-1, self.m - self.n))
            if bool((gone & ~self._groups(problem.mask[name]).cpu()).sum() != (~self._groups(problem.mask[name])).sum()):
                raise ValueError(f"the present mask of '{name}' goes further than {self.n}:{self.m} at sparsity {sparsity}")
            mask[name] = self._weights(~gone, mask[name].shape).to(mask[name].device)
        return mask

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        """Raise RuntimeError where a group keeps fewer than n weights, a layer that does not fit is cut, or the count is not right."""
        self.refuse(cost)
        share = self._share(sparsity)
        total = removed = 0
        for name, m in problem.mask.items():
            if not self.fits(m):
                if not bool(m.all()):
                    raise RuntimeError(f"'{name}' is cut, but {self.m} does not divide its inputs")
                continue
            kept = self._groups(m).sum(1)
            if int(kept.min()) < self.n:
                raise RuntimeError(f"'{name}' keeps {int(kept.min())} of {self.m} weights in a group, not {self.n}")
            total += len(kept) * (self.m - self.n)
            removed += int((self.m - kept).sum())
        if removed != round(share * total):
            raise RuntimeError(f"the mask removes {removed} weights of layers that fit, {round(share * total)} were asked for")

    def _share(self, sparsity: float) -> float:
        """Of the weights that the pattern removes, the share that is removed at a sparsity."""
        if not 0.0 <= sparsity <= self.fixed_sparsity:
            raise ValueError(f"{self.n}:{self.m} has the sparsity {self.fixed_sparsity:g}, not {sparsity:g}")
        return sparsity / self.fixed_sparsity

    def _groups(self, weight: Tensor) -> Tensor:
        """(out, in, *kernel) -> (groups, m): input channels last, and cut into runs of m."""
        return weight.movedim(1, -1).reshape(-1, self.m)

    def _weights(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `_groups`."""
        return groups.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()

    def _ranked(self, scores: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of each group the places, best first, and their scores, on the CPU. Masked weights come last, with the lowest score."""
        values = self._groups(scores.detach().double().masked_fill(~mask, -torch.inf)).cpu()
        lots = torch.rand(values.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
        order = values.gather(1, lots).argsort(dim=1, descending=True, stable=True)
        places = lots.gather(1, order)
        return places, values.gather(1, places)


def semi_structured(model: nn.Module, mask: Mask) -> list[str]:
    """Turn the Linear weights of a half-precision model on a GPU, in place, into torch's semi-structured sparse form.

    The names of those that were: 2:4-masked weights whose shape the form takes. Raises RuntimeError where torch has no kernel.
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
