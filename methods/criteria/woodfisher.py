"""WoodFisher: Optimal Brain Surgeon with blocks of the empirical Fisher."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Problem, Scores, Stage, Values
from methods.core.layer_scaling import ACROSS, SCOPES, rescope
from methods.core.masks import Mask
from methods.core.schedule import cubic
from methods.curvature.per_sample import sample_gradients
from methods.curvature.precision import widened
from methods.curvature.removal import joint_update
from methods.registry.registry import register

MEMORY = 2 << 30  # bytes of all blocks if the criterion chooses their side; fixed, so that all machines choose the same
SIDE = 128  # the largest side that it chooses: as accurate as 1024 in a sixteenth of the time (digits, MNIST, validation data)
WORK = 1 << 22  # entries of the blocks that are factorised at once


@register("woodfisher")
@dataclass(frozen=True, kw_only=True)
class WoodFisher(Criterion):
    """WoodFisher: Optimal Brain Surgeon with blocks of the empirical Fisher, and an update of the kept weights.

    s_q = w_q² / (2 [F⁻¹]_qq) is the increase of the loss that a quadratic model with curvature F predicts if w_q is removed and the
    other weights adjust.

    F = λ + (1/N) Σ_n g_n g_nᵀ on blocks of c consecutive weights of a flattened weight (out, in, *kernel), the last block of a layer
    shorter, and zero elsewhere. g_n is the gradient of the loss of sample n, or of the mean loss of a mini-batch, zero for masked
    weights. `scope` decides how scores of different layers are compared.

    `damping`: λ. `samples`: largest number of training samples that are read, in the order of the batches. `mini_batch`: m samples
    for each g_n, so that N = samples / m; F shrinks by about m, so λ is not comparable between values of m. `block`: c; 0 means the
    largest number up to 128 with which all blocks fit in 2 GiB, on every machine alike. `update` of the kept weights K of a block for
    its newly removed weights Q:

        joint   δw_K = F_KK⁻¹ F_KQ w_Q = -[F⁻¹_·Q (F⁻¹_QQ)⁻¹ w_Q]_K, the minimum of the quadratic model (default)
        summed  δw_K = -[F⁻¹ Σ_q e_q w_q / [F⁻¹]_qq]_K, the sum of the updates for single weights, as published
        none    no update

    `steps` > 1: score, cut and update this many times on the way to the target, with new gradients each time; sparsities by
    `methods.core.schedule.cubic`. The network is then scored anew for each target, and masks of different targets are not nested.

    Memory: 4 P c bytes for P weights in float32 until the last update (twice this between `steps`), plus a few times 1/2 GiB for
    gradients, and about 24 c² bytes while a large block is factorised. Time: O(N P c) to sum, O(P c²) to factorise, once more for each
    update. Blocks that need more than half of the free memory are refused.

    Reference: Singh, Alistarh, "WoodFisher: efficient second-order approximation for neural network compression", NeurIPS
    2020. Departures: Cholesky factors in float64 of the summed blocks replace the recursion by rank-one updates, which gives the
    same F⁻¹ and needs it N times; λ is at least the rounding error of the sum, ε · trace F of the block; `joint`; no training
    between `steps`, unless the schedule of a training makes the cuts; a block never spans two layers, where the paper's may.

    The defaults are not those of the paper, whose blocks hold up to whole layers: 36,864 weights in ResNet-20, which `block=36864`
    needs 5.4 GB each for. With small blocks its λ = 1e-5 is too small: a ResNet-20 then falls to 23 % accuracy at sparsity 0.6, and
    with λ = 1e-3 it leads magnitude pruning by 2 to 6 points.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    damping: float = Float(1e-3, 1e-6, 1e-1, log=True, above=0, meaning="λ, added to the diagonal of the Fisher")
    samples: int = Int(4096, minimum=1, meaning="training samples that are read, at most")
    mini_batch: int = Int(1, 1, 128, log=True, minimum=1, meaning="samples averaged in each gradient")
    block: int = Int(0, minimum=0, meaning="weights in a block of the Fisher; 0: the largest number that fits, up to 128")
    update: str = Choice("joint", "joint", "summed", "none", meaning="how kept weights are adjusted for removed ones")
    steps: int = Int(1, minimum=1, meaning="rounds of scoring and cutting, without training between them")
    scope: str = Choice("global", *SCOPES, drawn=ACROSS, meaning="how scores of different layers are compared")

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """`steps` sparsities on a cubic schedule."""
        return cubic(present, target, self.steps)

    def score(self, problem: Problem) -> Scores:
        """w² / (2 diag F⁻¹); the state is F: name -> (blocks, c, c).

        Raises:
            ValueError: if the blocks do not fit in memory.
        """
        fisher = self._fisher(problem)
        values = {}
        for name, w in problem.weights.items():
            inverse = torch.cat([_diagonal_of_inverse(torch.linalg.cholesky(f)) for _, f in _parts(fisher[name])])
            values[name] = widened(w.detach()).square() / (2.0 * _whole(inverse, w))
        return Scores(rescope(values, self.scope, problem), None if self.update == "none" else fisher)

    def _fisher(self, problem: Problem) -> Values:
        """F; entries beyond the last weight of a layer are those of λ."""
        weights = problem.weights
        side = side_of_blocks(weights, self.block, problem.device)
        fisher: Values = {}
        for name, w in weights.items():
            c = min(side, w.numel())
            fisher[name] = torch.zeros(-(-w.numel() // c), c, c, dtype=_type(w), device=w.device)
        count = dict.fromkeys(weights, 0)
        with closing(sample_gradients(problem, list(weights), samples=self.samples, mini_batch=self.mini_batch)) as gradients:
            for name, g in gradients:
                f, mask = fisher[name], problem.mask[name]
                blocks = _blocks((g if mask.all() else g * mask).flatten(1), f.shape[1]).transpose(0, 1).to(f.dtype)
                f.baddbmm_(blocks.mT, blocks)
                count[name] += len(g)
        for name, f in fisher.items():
            f /= count[name]
            diagonal = f.diagonal(dim1=1, dim2=2)
            trace = diagonal.sum(1, keepdim=True)
            if not trace.isfinite().all():
                raise ValueError(f"woodfisher: the gradients of '{name}' are not finite")
            diagonal += (trace * torch.finfo(f.dtype).eps).clamp_min(self.damping)
        return fisher

    @torch.no_grad()
    def compensate(self, problem: Problem, mask: Mask, state: Values | None) -> None:
        """Add δw to the kept weights."""
        if state is None:
            return
        update = joint_update if self.update == "joint" else _summed
        for name, w in problem.weights.items():
            fisher, dropped = state[name], problem.mask[name] & ~mask[name]
            keep, dropped, removed = (_blocks(v.flatten(), fisher.shape[1]) for v in (mask[name], dropped, (w * dropped).double()))
            change = torch.zeros_like(removed)
            affected = (dropped.any(1) & keep.any(1)).nonzero().squeeze(1)
            for rows, f in _parts(fisher, affected):
                change[rows] = update(f, removed[rows].unsqueeze(2), keep[rows].unsqueeze(2)).squeeze(2)
            w.add_(_whole(change, w))


def _summed(f: Tensor, removed: Tensor, keep: Tensor) -> Tensor:
    """-F⁻¹ Σ_q e_q w_q / [F⁻¹]_qq on K, zero elsewhere."""
    factor = torch.linalg.cholesky(f)
    return -torch.cholesky_solve(removed / _diagonal_of_inverse(factor).unsqueeze(2), factor) * keep


def _diagonal_of_inverse(factor: Tensor) -> Tensor:
    """[(L Lᵀ)⁻¹]_qq = Σ_i (L⁻¹)²_iq; `torch.cholesky_inverse` is 100 times slower for many small blocks on several threads."""
    one = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    diagonal: Tensor = torch.linalg.solve_triangular(factor, one, upper=False).square_().sum(1)
    return diagonal


# --- blocks ----------------------------------------------------------------------------------------------------------


def side_of_blocks(weights: Mapping[str, Tensor], wanted: int, device: torch.device) -> int:
    """The side c of the blocks.

    Args:
        weights: name -> weight.
        wanted: c; 0 for the largest with which all blocks fit in MEMORY.
        device: where the blocks are stored.

    Raises:
        ValueError: if the blocks need more than half of the free memory.
    """
    side = wanted or next((c for c in range(SIDE, 1, -1) if bytes_of_blocks(weights, c) <= MEMORY), 1)
    needed, free = bytes_of_blocks(weights, side), free_memory(device)
    if free is not None and needed > free / 2:
        raise ValueError(
            f"woodfisher: blocks of {side} weights need {needed / 1e9:.1f} GB, more than half of the free {free / 1e9:.1f} GB: "
            "choose a smaller block"
        )
    return side


def bytes_of_blocks(weights: Mapping[str, Tensor], side: int) -> int:
    """Bytes of all blocks; the last one of a layer is padded to c."""
    sides = [(w, min(side, w.numel())) for w in weights.values()]
    return sum(-(-w.numel() // c) * c * c * _type(w).itemsize for w, c in sides)


def free_memory(device: torch.device) -> int | None:
    """Free memory of the device in bytes; None if it is unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if device.type == "cpu" and table.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _type(w: Tensor) -> torch.dtype:
    """The type of a block: at least single precision, because in half precision λ is below the rounding error."""
    return torch.promote_types(w.dtype, torch.float32)


def _blocks(v: Tensor, side: int) -> Tensor:
    """(..., weights of a layer) as (..., blocks, c), the last block padded with zeros."""
    filled = F.pad(v, (0, -v.shape[-1] % side))
    return filled.view(*v.shape[:-1], -1, side)


def _whole(blocks: Tensor, like: Tensor) -> Tensor:
    """(blocks, c) in the shape of the weight `like`."""
    return blocks.flatten()[: like.numel()].view(like.shape)


def _parts(fisher: Tensor, rows: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Some blocks at a time in float64: (their indices, (n, c, c))."""
    rows = torch.arange(len(fisher), device=fisher.device) if rows is None else rows
    for part in rows.split(max(1, WORK // fisher.shape[1] ** 2)):
        yield part, fisher[part].double()
