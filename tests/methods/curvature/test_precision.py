"""Networks in half precision: every score and every curvature is that of a float32 network with the same, rounded weights."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Problem
from methods.core.cutting import score
from methods.core.interface import full_mask
from methods.criteria.grasp import Grasp
from methods.criteria.kfac_obs import KfacObs
from methods.criteria.obd import Obd
from methods.criteria.opd import Opd
from methods.criteria.snip import Snip
from methods.criteria.synflow import Synflow
from methods.criteria.woodfisher import WoodFisher
from methods.curvature.compute import curvature
from methods.curvature.precision import full_precision
from methods.training.spam import Spam

HALVES = [torch.bfloat16, torch.float16]
Data = list[tuple[Tensor, Tensor]]


def small(loss_scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda f, y: loss_scale * F.cross_entropy(f, y)


def pair(dtype: torch.dtype, size: int = 8) -> tuple[nn.Module, Data, nn.Module, Data]:
    """A network of half precision with its data, and the float32 network with the same weights."""
    torch.manual_seed(0)
    half = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    half = half.to(dtype).eval()
    full = copy.deepcopy(half).float()
    x, y = torch.randn(256, 1, 4, 4).to(dtype), torch.randint(3, (256,))
    return half, list(zip(x.split(size), y.split(size), strict=True)), full, list(zip(x.float().split(size), y.split(size), strict=True))


CRITERIA = [Snip(n_batches=10), Grasp(), Synflow(n_rounds=1), Obd(), Obd(curvature="mc"), WoodFisher(), KfacObs(), Opd()]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: f"{c.name} {getattr(c, 'curvature', '')}")
def test_scores_are_those_of_single_precision(criterion: Any, dtype: torch.dtype) -> None:
    half, halves, full, singles = pair(dtype)
    found, wanted = score(Problem(half, halves), criterion), score(Problem(full, singles), criterion)
    for name, s in wanted.values.items():
        assert s.any()
        assert torch.allclose(found.values[name].double(), s.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_curvature_neither_stalls_nor_underflows(structure: str, dtype: torch.dtype, scale: float) -> None:
    half, halves, full, singles = pair(dtype)
    names = ["0.weight", "5.weight"]
    found, wanted = (
        curvature(Problem(m, d, small(scale)), "ef", structure=structure, names=names) for m, d in ((half, halves), (full, singles))
    )
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    for name, h in wanted.diagonal.items():
        assert h.min() > 0
        assert torch.allclose(found.diagonal[name], h, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_network_keeps_its_type_values_and_tensors(dtype: torch.dtype) -> None:
    half, halves, _, _ = pair(dtype)
    half[0].weight.grad = torch.ones_like(half[0].weight)
    before = {n: (v.data_ptr(), v.clone()) for n, v in half.state_dict().items()}
    with contextlib.suppress(KeyError), full_precision(Problem(half, halves)) as wide:
        assert all(v.dtype == torch.float32 for v in half.state_dict().values() if v.is_floating_point())
        assert next(iter(wide.batches))[0].dtype == torch.float32
        assert wide.samples == 256
        assert wide.input_shape == (1, 4, 4)
        raise KeyError("also after a failure")
    for name, v in half.state_dict().items():
        assert (v.data_ptr(), v.dtype) == (before[name][0], before[name][1].dtype)
        assert torch.equal(v, before[name][1])
    assert half[0].weight.grad.dtype == dtype


def test_single_precision_is_not_touched_and_autocast_is_switched_off() -> None:
    _, _, full, singles = pair(torch.bfloat16)
    problem = Problem(full, singles)
    with full_precision(problem) as same:
        assert same is problem
    wanted = curvature(problem, "ef").diagonal
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = curvature(problem, "ef").diagonal
    assert all(torch.equal(found[n], h) for n, h in wanted.items())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("criterion", [KfacObs(), KfacObs(update="summed"), WoodFisher()], ids=["joint", "summed", "woodfisher"])
def test_kept_weights_are_adjusted_as_in_single_precision(criterion: Any, dtype: torch.dtype) -> None:
    half, halves, full, singles = pair(dtype)
    changed = []
    for model, data in ((half, halves), (full, singles)):
        problem = Problem(model, data)
        state = score(problem, criterion).state
        mask = {n: torch.arange(m.numel()).view(m.shape) % 3 > 0 for n, m in full_mask(model).items()}
        criterion.compensate(problem, mask, state)
        changed.append({n: w.detach().float() for n, w in problem.weights.items()})
    assert half[0].weight.dtype == dtype
    for name, w in changed[1].items():
        assert torch.allclose(changed[0][name], w, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_spam_measures_half_precision_as_single(structure: str, dtype: torch.dtype) -> None:
    half, halves, full, singles = pair(dtype, 64)
    values = []
    for model, data in ((half, halves), (full, singles)):
        training = Spam(structure=structure, share=1.0, memory=0.0)
        problem = Problem(model, data)
        state = training.after_epoch(problem, training.prepare(problem), 1, 4)
        state = training.after_epoch(problem, state, 2, 4)
        values.append(training.finish(problem, state).marginal_likelihood)
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    posterior = methods.train(half, halves, "spam", epochs=2, lr=0.01, structure=structure)
    assert all(p.dtype == dtype for p in half.parameters())
    assert all(h.dtype == torch.float32 for h in posterior.curvature.values())
