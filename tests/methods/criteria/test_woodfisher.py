"""WoodFisher against dense matrices, the published recursion, closed formulas and a constrained minimisation."""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Mask, Problem
from methods.core.schedule import cubic

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Module]
Values = dict[str, Tensor]

WEIGHT = methods.make("granularities", "weight", {})
MAGNITUDE = methods.make("criteria", "magnitude", {})


def woodfisher(**options: Any) -> methods.Criterion:
    return methods.make("criteria", "woodfisher", {"damping": 1e-3, **options})


module = sys.modules[type(woodfisher()).__module__]


def convnet() -> nn.Module:
    """Weights of 54 and 36; on 2 x 4 x 4 inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def images(*sizes: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    ]


def sample_gradients(problem: Problem, m: int = 1) -> Values:
    """Name -> (N, weights), by one backward pass for each m consecutive samples; those left over are left out."""
    x, y = (torch.cat(part) for part in zip(*problem.batches, strict=True))
    rows = []
    for k in range(len(y) // m):
        loss = problem.loss(problem.model(x[k * m : (k + 1) * m]), y[k * m : (k + 1) * m])
        rows.append(torch.autograd.grad(loss, list(problem.weights.values())))
    return {n: torch.stack([row[k].flatten() for row in rows]) * problem.mask[n].flatten() for k, n in enumerate(problem.weights)}


def dense(problem: Problem, c: int, m: int = 1, damping: float = 1e-3) -> Values:
    """Name -> F of the whole weight, zero outside blocks of c."""
    found = {}
    for name, g in sample_gradients(problem, m).items():
        block = torch.arange(g.shape[1]) // c
        same = block.unsqueeze(0) == block.unsqueeze(1)
        found[name] = (g.T @ g / len(g)) * same + damping * torch.eye(g.shape[1], dtype=g.dtype)
    return found


def scores_of(problem: Problem, fisher: Values) -> Values:
    return {n: (w.detach().flatten().square() / (2 * fisher[n].inverse().diagonal())).view_as(w) for n, w in problem.weights.items()}


def close(found: Values, wanted: Values, rtol: float = 1e-8) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[n], wanted[n], rtol=rtol, atol=1e-13) for n in wanted)


def half(problem: Problem, seed: int = 0, share: float = 0.5) -> Mask:
    """A random mask inside the present one."""
    generator = torch.Generator().manual_seed(seed)
    return {n: m & (torch.rand(m.shape, generator=generator) > share) for n, m in problem.mask.items()}


def compensated(problem: Problem, criterion: methods.Criterion, mask: Mask) -> Values:
    """The weights after the update and the cut; the problem's own stay."""
    again = replace(problem, model=copy.deepcopy(problem.model))
    criterion.compensate(again, mask, methods.score(problem, criterion).state)
    methods.apply_mask(again.model, mask)
    return {n: w.detach() for n, w in again.weights.items()}


# --- scores


@pytest.mark.parametrize("c", [1, 7, 36, 8192])
def test_scores_are_those_of_dense_blocks_inside_each_layer(c: int) -> None:
    problem = Problem(convnet(), images(5, 16, 3))
    assert close(methods.score(problem, woodfisher(block=c)).values, scores_of(problem, dense(problem, c)))


def test_the_published_recursion_ends_at_the_same_inverse(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp().double(), [(x.double(), y) for x, y in batches])
    found = methods.score(problem, woodfisher(block=30))
    for name, g in sample_gradients(problem).items():
        inverse = torch.eye(g.shape[1], dtype=g.dtype) / 1e-3
        for row in g:
            v = inverse @ row
            inverse = inverse - torch.outer(v, v) / (len(g) + row @ v)
        w = problem.weights[name].detach()
        assert torch.allclose(found.state[name][0].inverse(), inverse, rtol=1e-8, atol=1e-8)
        assert torch.allclose(found.values[name], (w.flatten().square() / (2 * inverse.diagonal())).view_as(w), rtol=1e-9)


def test_the_gradients_of_mini_batches_are_means_of_consecutive_samples() -> None:
    problem = Problem(convnet(), images(5, 16, 3))  # 24 samples: four times 5, and 4 that are left out
    found = methods.score(problem, woodfisher(block=7, mini_batch=5)).values
    assert close(found, scores_of(problem, dense(problem, 7, m=5)))
    assert not close(found, scores_of(problem, dense(problem, 7)), rtol=1e-2)
    together = methods.score(problem, woodfisher(block=7, mini_batch=128)).values  # fewer samples than one mini-batch
    assert close(together, scores_of(problem, dense(problem, 7, m=24)))


def test_samples_are_the_first_ones_to_the_sample() -> None:
    data = images(300)
    found = methods.score(Problem(convnet(), data), woodfisher(samples=256)).values
    first = [(x[:256], y[:256]) for x, y in data]
    assert close(found, methods.score(Problem(convnet(), first), woodfisher()).values)


def test_any_loss_is_taken(mlp: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 6, generator=generator).double(), torch.randn(8, 3, generator=generator).double()) for _ in range(2)]
    problem = Problem(mlp().double(), data, loss=F.huber_loss)
    assert close(methods.score(problem, woodfisher(block=7)).values, scores_of(problem, dense(problem, 7)))


def test_masked_weights_take_no_part() -> None:
    problem = Problem(convnet(), images(16, 8))
    problem.mask = half(problem)
    methods.apply_mask(problem.model, problem.mask)
    found = methods.score(problem, woodfisher(block=7))
    assert close(found.values, scores_of(problem, dense(problem, 7)))
    assert not close(found.values, scores_of(problem, dense(Problem(problem.model, problem.batches), 7)), rtol=1e-2)


def test_a_frozen_layer_is_scored_and_left_frozen() -> None:
    problem = Problem(convnet(), images(16, 8))
    wanted = scores_of(problem, dense(problem, 7))
    problem.model[0].weight.requires_grad_(False)
    for m in (1, 8):
        found = methods.score(problem, woodfisher(block=7, mini_batch=m)).values
        assert m == 8 or close(found, wanted)
        assert [p.requires_grad for p in problem.model.parameters()] == [False, True, True, True]


def test_gradients_in_many_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(convnet(), images(16, 8))
    criteria = [woodfisher(block=7), woodfisher(block=7, mini_batch=2)]
    whole = [methods.score(problem, c).values for c in criteria]
    monkeypatch.setattr("methods.curvature.passes.FORMED", 200)
    monkeypatch.setattr(module, "WORK", 100)  # two blocks of 7 at a time
    for criterion, wanted in zip(criteria, whole, strict=True):
        assert close(methods.score(problem, criterion).values, wanted)


def test_without_gradients_the_damping_alone_ranks_by_magnitude() -> None:
    problem = Problem(convnet(), images(16), loss=lambda f, y: 0.0 * f.sum())
    found = methods.score(problem, woodfisher())
    assert close(found.values, {n: 0.5e-3 * w.detach().square() for n, w in problem.weights.items()})
    mask = half(problem)
    kept = {n: w.detach() * mask[n] for n, w in problem.weights.items()}
    for update in ("joint", "summed"):
        assert close(compensated(problem, woodfisher(update=update), mask), kept)


@pytest.mark.parametrize("update", ["joint", "summed"])
def test_gradients_whose_rounding_outgrows_the_damping_still_factorise(update: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(50, 1, bias=False)
    x = 1e4 * torch.randn(1, 50, generator=generator) * (1 + 1e-3 * torch.randn(32, 50, generator=generator))
    problem = Problem(model, [(x, torch.zeros(32))], loss=lambda f, y: f.mean())
    criterion = woodfisher(damping=1e-6, update=update)
    assert methods.score(problem, criterion).values["weight"].isfinite().all()
    assert compensated(problem, criterion, half(problem))["weight"].isfinite().all()


def test_gradients_that_are_not_finite_are_reported() -> None:
    problem = Problem(convnet(), images(16), loss=lambda f, y: (f * torch.inf).mean())
    with pytest.raises(ValueError, match=r"the gradients of '0\.weight' are not finite"):
        methods.score(problem, woodfisher())


# --- updates


@pytest.mark.parametrize("c", [7, 54])
@pytest.mark.parametrize("earlier", [False, True])
def test_the_joint_update_is_the_constrained_minimum(c: int, earlier: bool) -> None:
    problem = Problem(convnet(), images(16, 8))
    if earlier:
        problem.mask = half(problem, seed=1, share=0.3)
        methods.apply_mask(problem.model, problem.mask)
    mask = half(problem)
    found = compensated(problem, woodfisher(block=c), mask)
    for name, fisher in dense(problem, c).items():
        w, old, new = (v[name].detach().flatten() for v in (problem.weights, problem.mask, mask))
        q, k = (old & ~new).nonzero().squeeze(1), new.nonzero().squeeze(1)
        change = found[name].flatten() - w
        inverse = fisher.inverse()
        closed = -inverse[:, q] @ torch.linalg.solve(inverse[q][:, q], w[q])
        assert torch.allclose(change[k], closed[k], rtol=1e-8, atol=1e-12)
        assert torch.allclose(change[q], closed[q], rtol=1e-8, atol=1e-12)
        assert not change[~old].any()
        # min ½ δᵀFδ with δ = -w on Q and 0 on what was masked before: Lagrange multipliers for both.
        fixed = (~new).nonzero().squeeze(1)
        n, r = len(w), len(fixed)
        system = torch.zeros(n + r, n + r, dtype=w.dtype)
        system[:n, :n] = fisher
        system[fixed, n + torch.arange(r)] = system[n + torch.arange(r), fixed] = 1.0
        minimum = torch.linalg.solve(system, torch.cat([torch.zeros(n, dtype=w.dtype), -w[fixed]]))[:n]
        assert torch.allclose(change, minimum, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_summed_update_adds_one_update_for_each_weight(earlier: bool) -> None:
    problem = Problem(convnet(), images(16, 8))
    if earlier:
        problem.mask = half(problem, seed=1, share=0.3)
        methods.apply_mask(problem.model, problem.mask)
    mask = half(problem)
    found = compensated(problem, woodfisher(block=7, update="summed"), mask)
    for name, fisher in dense(problem, 7).items():
        w, inverse = problem.weights[name].detach().flatten(), fisher.inverse()
        wanted = w.clone()
        for q in (problem.mask[name] & ~mask[name]).flatten().nonzero().flatten().tolist():
            wanted -= w[q] * inverse[:, q] / inverse[q, q]
        assert torch.allclose(found[name].flatten(), wanted * mask[name].flatten(), rtol=1e-8, atol=1e-12)


def test_one_removed_weight_is_updated_alike_by_both() -> None:
    problem = Problem(convnet(), images(16, 8))
    mask = methods.full_mask(problem.model)
    mask["0.weight"].view(-1)[4] = False
    joint, summed, none = (compensated(problem, woodfisher(block=7, update=u), mask) for u in ("joint", "summed", "none"))
    assert close(joint, summed)
    changed = (joint["0.weight"] != none["0.weight"]).flatten().nonzero().flatten().tolist()
    assert changed == [0, 1, 2, 3, 5, 6]  # the rest of the block, and nothing else
    assert torch.equal(joint["3.weight"], none["3.weight"])


@pytest.mark.parametrize("update", ["joint", "summed"])
def test_one_scoring_serves_all_sparsities(update: str) -> None:
    problem, criterion = Problem(convnet(), images(16, 8)), woodfisher(block=7, update=update)
    scores = methods.score(problem, criterion)
    state = {n: f.clone() for n, f in scores.state.items()}
    for sparsity in (0.9, 0.5):
        models = [copy.deepcopy(problem.model) for _ in range(2)]
        masks = [
            methods.cut(replace(problem, model=model), criterion, WEIGHT, sparsity, given)
            for model, given in zip(models, (scores, None), strict=True)
        ]
        assert all(torch.equal(masks[0][n], masks[1][n]) for n in masks[0])
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
        assert methods.mask_holds(models[0], masks[0])
    assert all(torch.equal(state[n], f) for n, f in scores.state.items())


def quadratic(seed: int, sparsity: float, update: str) -> float:
    """½ δᵀFδ of the whole change, P = 60 weights and N = 40 samples whose gradients are the inputs."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(60, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 60, generator=generator))
    x = torch.randn(40, 60, generator=generator, dtype=torch.float64)
    problem = Problem(model, [(x, torch.zeros(40))], loss=lambda f, y: f.mean())
    before = model.weight.detach().clone()
    methods.cut(problem, woodfisher(update=update), WEIGHT, sparsity)
    change = (model.weight.detach() - before).squeeze(0)
    return float(0.5 * change @ (x.T @ x / 40 + 1e-3 * torch.eye(60, dtype=torch.float64)) @ change)


def test_on_a_quadratic_loss_joint_always_helps_and_summed_may_harm() -> None:
    harmed = 0
    for seed in range(5):
        for sparsity in (0.5, 0.9):
            joint, summed, none = (quadratic(seed, sparsity, u) for u in ("joint", "summed", "none"))
            assert joint < 0.95 * min(summed, none)
            harmed += summed > none
    assert harmed > 0


# --- several steps


def test_steps_score_cut_and_update_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, criterion = Problem(convnet(), images(16, 8)), woodfisher(block=7, steps=3)
    methods.cut(problem, MAGNITUDE, WEIGHT, 0.2)
    problem.mask = {n: w.detach() != 0 for n, w in problem.weights.items()}
    by_hand = replace(problem, model=copy.deepcopy(problem.model))
    once = replace(problem, model=copy.deepcopy(problem.model))
    present = methods.sparsity_of(problem.mask)

    seen: list[tuple[float, float]] = []
    real = type(criterion).score

    def spy(self: methods.Criterion, problem: Problem) -> methods.Scores:
        seen.append((problem.target, methods.sparsity_of(problem.mask)))
        return real(self, problem)

    monkeypatch.setattr(type(criterion), "score", spy)
    mask = methods.cut(problem, criterion, WEIGHT, 0.9)
    targets = cubic(present, 0.9, 3)
    assert [t for t, _ in seen] == list(targets)
    assert targets == pytest.approx([0.9 + (present - 0.9) * (1 - k / 3) ** 3 for k in (1, 2, 3)])
    assert [s for _, s in seen] == pytest.approx([present, *targets[:2]], abs=0.5 / 90)

    for target in targets:
        by_hand.mask = methods.cut(by_hand, woodfisher(block=7), WEIGHT, target)
    assert all(torch.equal(mask[n], by_hand.mask[n]) for n in mask)
    assert all(torch.equal(a, b) for a, b in zip(problem.model.parameters(), by_hand.model.parameters(), strict=True))
    methods.cut(once, woodfisher(block=7), WEIGHT, 0.9)
    assert any(not torch.equal(a, b) for a, b in zip(problem.model.parameters(), once.model.parameters(), strict=True))


def test_only_one_step_is_scored_once_for_all_sparsities() -> None:
    assert methods.scored_once(woodfisher())
    assert not methods.scored_once(woodfisher(steps=2))


# --- memory


def state_bytes(problem: Problem, criterion: methods.Criterion) -> int:
    return sum(f.numel() * f.element_size() for f in methods.score(problem, criterion).state.values())


@pytest.mark.parametrize("budget", [720, 5_000, 20_000, 10**6])
def test_the_block_chosen_is_the_largest_within_the_budget(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    problem = Problem(convnet(), images(8))  # 90 weights of 8 bytes
    monkeypatch.setattr(module, "MEMORY", budget)
    chosen = module.side_of_blocks(problem.weights, 0, torch.device("cpu"))
    assert state_bytes(problem, woodfisher()) == state_bytes(problem, woodfisher(block=chosen)) <= budget
    if budget < 10**6:
        assert chosen < 54
        assert state_bytes(problem, woodfisher(block=chosen + 1)) > budget
    else:
        assert chosen == module.SIDE


def test_blocks_that_do_not_fit_are_refused_before_they_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: 3 * 10**9)
    model = nn.Linear(4096, 4096, bias=False)
    batches = [(torch.zeros(1, 4096), torch.zeros(1, dtype=torch.long))]
    monkeypatch.setattr(module, "sample_gradients", None)
    with pytest.raises(
        ValueError, match=r"^woodfisher: blocks of 4096 weights need 274\.9 GB, more than half of the free 3\.0 GB"
    ) as raised:
        methods.score(Problem(model, batches), woodfisher(block=4096))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"blocks of 32 weights need 2\.1 GB"):  # the one it chooses itself does not fit either
        methods.score(Problem(model, batches), woodfisher())


def test_the_free_memory_is_that_of_the_system() -> None:
    free = module.free_memory(torch.device("cpu"))
    assert free is None or 10**6 < free < 10**14


def test_without_update_no_blocks_are_kept() -> None:
    assert methods.score(Problem(convnet(), images(8)), woodfisher(update="none")).state is None
