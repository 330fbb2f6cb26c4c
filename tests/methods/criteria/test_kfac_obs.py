"""Kronecker-factored OBS against dense matrices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import methods
from methods import Problem
from methods.core.modes import evaluating
from methods.criteria.kfac_obs import KfacObs, solve
from methods.curvature.blocks import Kronecker
from methods.curvature.compute import curvature

Data = list[tuple[Tensor, Tensor]]
WEIGHT = methods.make("granularities", "weight", {})


def small() -> tuple[nn.Module, Data]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 2, groups=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
        x, y = torch.randn(40, 2, 3, 3).double(), torch.randint(0, 3, (40,))
    return model, list(zip(x.split(8), y.split(8), strict=True))


def dense(problem: Problem, damping: float) -> dict[str, Tensor]:
    """F = B ⊗ A / N + λ 1 of each layer, written out."""
    with evaluating(problem.model):
        blocks = curvature(problem, "ggn", structure="kronecker", names=list(problem.weights)).blocks
    made = {}
    for name, block in blocks.items():
        outer, inner = block.outer[0], block.inner[0]  # type: ignore[attr-defined]
        h = torch.kron(outer.contiguous(), inner.contiguous()) / problem.samples
        made[name] = h + damping * torch.eye(len(h)).double()
    return made


def test_the_score_is_that_of_the_dense_inverse() -> None:
    model, batches = small()
    problem = Problem(model, batches)
    scores = methods.score(problem, KfacObs(curvature="ggn", damping=1e-3)).values
    for name, f in dense(problem, 1e-3).items():
        w = problem.weights[name].detach()
        wanted = w.flatten().square() / (2.0 * torch.linalg.inv(f).diagonal())
        assert torch.allclose(scores[name].flatten(), wanted, rtol=1e-6), name


@pytest.mark.parametrize("update", ["joint", "summed", "none"])
def test_the_update_is_that_of_dense_matrices(update: str) -> None:
    """Twice, the second time with weights already cut: they stay at zero and take no part in the joint update."""
    model, batches = small()
    problem = Problem(model, batches)
    criterion = KfacObs(curvature="ggn", damping=1e-3, update=update)
    for sparsity in (0.3, 0.7):
        fisher = dense(problem, 1e-3)
        before = {n: w.detach().clone().flatten() for n, w in problem.weights.items()}
        mask = methods.cut(problem, criterion, WEIGHT, sparsity)
        for name, f in fisher.items():
            kept, alive, w = mask[name].flatten(), problem.mask[name].flatten(), before[name]
            removed = alive & ~kept
            wanted = w.clone()
            if update == "joint":
                wanted[kept] += torch.linalg.solve(f[kept][:, kept], f[kept][:, removed] @ w[removed])
            elif update == "summed":
                inverse = torch.linalg.inv(f)
                wanted -= inverse @ torch.where(removed, w / inverse.diagonal(), 0.0)
            wanted[~kept] = 0.0
            assert torch.allclose(problem.weights[name].flatten(), wanted, atol=1e-4 * float(w.abs().max())), name
        problem = replace(problem, mask=mask)


def test_the_joint_update_has_the_least_loss_of_the_quadratic_model() -> None:
    batches = small()[1]
    losses = {}
    for update in ("joint", "summed", "none"):
        problem = Problem(small()[0], batches)
        f = dense(problem, 1e-3)
        before = {n: w.detach().clone().flatten() for n, w in problem.weights.items()}
        methods.cut(problem, KfacObs(curvature="ggn", damping=1e-3, update=update), WEIGHT, 0.6)
        moved = {n: w.detach().flatten() - before[n] for n, w in problem.weights.items()}
        losses[update] = sum(float(d @ f[n] @ d) for n, d in moved.items())
    assert losses["joint"] < 0.9 * losses["none"]
    assert losses["joint"] < 0.99 * losses["summed"]


def test_conjugate_gradients_solve_the_kept_part() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = [torch.randn(1, n, n, generator=generator, dtype=torch.float64) for n in (5, 7)]
    block = Kronecker(roots[0] @ roots[0].mT, roots[1] @ roots[1].mT, torch.Size((5, 7)))
    f = block.precision(torch.tensor(0.1, dtype=torch.float64))
    kept = torch.rand(35, generator=generator) > 0.4
    b = torch.randn(35, generator=generator, dtype=torch.float64) * kept
    full = torch.kron(block.outer[0], block.inner[0]) + 0.1 * torch.eye(35)
    x = solve(f, kept, b)
    assert not x[~kept].any()
    assert torch.allclose(full[kept][:, kept] @ x[kept], b[kept], atol=1e-4 * float(b.norm()))


def test_several_steps_take_fresh_curvature() -> None:
    model, batches = small()
    problem = Problem(model, batches)
    seen = []

    class Watched(KfacObs):
        def score(self, problem: Problem) -> methods.Scores:
            seen.append(round(problem.target, 6))
            return super().score(problem)

    methods.cut(problem, Watched(steps=3), WEIGHT, 0.8)
    assert seen == [round(s, 6) for s in (0.8 - 0.8 * 8 / 27, 0.8 - 0.8 / 27, 0.8)]
    assert not methods.scored_once(KfacObs(steps=3))
    assert methods.scored_once(KfacObs())
