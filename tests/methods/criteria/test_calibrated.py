"""Wanda, OBC and SparseGPT against plain loops, dense inverses and brute force."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from methods import Problem, count_masked
from methods.core.modes import evaluating
from methods.criteria.kfac_obs import solve
from methods.criteria.sparsegpt import SparseGpt
from methods.curvature.blocks import Kronecker
from methods.curvature.layer_inputs import layer_inputs
from methods.curvature.removal import removal_order

Data = list[tuple[Tensor, Tensor]]
WEIGHT = methods.make("granularities", "weight", {})
DAMPING = 1e-2


def criterion(name: str, **options: Any) -> methods.Criterion:
    return methods.make("criteria", name, options)


def pattern(n: int, m: int) -> methods.Granularity:
    return methods.make("granularities", "2:4", {"n": n, "m": m})


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(rows: int = 4, columns: int = 8, correlated: bool = True) -> Problem:
    """One Linear layer with correlated inputs."""
    layer = nn.Linear(columns, rows).double()
    x = drawn(200, columns) @ drawn(columns, columns, seed=1) if correlated else 2.0 * torch.eye(columns).double()
    with torch.no_grad():
        layer.weight.copy_(drawn(rows, columns, seed=2))
    return Problem(layer, [(x, torch.zeros(len(x)).long())])


def network() -> Problem:
    """A convolution and two Linear layers with 128, 256 and 36 weights; the last one has no multiple of four inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(4, 8, 2, padding=1), nn.Tanh(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
        )  # fmt: skip
        x, y = torch.randn(60, 4, 4, 4).double(), torch.randint(0, 3, (60,))
    return Problem(model.double(), list(zip(x.split(20), y.split(20), strict=True)))


def moment(problem: Problem, damping: float = DAMPING) -> Tensor:
    """X Xᵀ/n + λ 1 of a Linear layer."""
    x = torch.cat([x for x, _ in problem.batches])
    a = x.T @ x / len(x)
    return a + damping * a.diagonal().mean() * torch.eye(len(a)).double()


def least_loss(a: Tensor, w: Tensor, removed: list[int]) -> tuple[float, Tensor]:
    """The least (w - v)ᵀ A (w - v) over v with zeros at `removed`, and v, by solving the kept part."""
    kept = [j for j in range(len(w)) if j not in removed]
    v = torch.zeros_like(w)
    if kept:
        v[kept] = torch.linalg.solve(a[kept][:, kept], a[kept] @ w)
    return float((w - v) @ a @ (w - v)), v


# --- wanda


def test_wanda_is_weight_times_norm_of_the_input() -> None:
    problem = linear()
    x = next(iter(problem.batches))[0]
    scores = methods.score(problem, criterion("wanda", scope="global")).values["weight"]
    for i in range(4):
        for j in range(8):
            wanted = abs(float(problem.weights["weight"].detach()[i, j])) * sum(float(v) ** 2 for v in x[:, j]) ** 0.5
            assert float(scores[i, j]) == pytest.approx(wanted)


def test_wanda_of_a_convolution_has_a_norm_for_each_kernel_position() -> None:
    problem = network()
    x = torch.cat([x for x, _ in problem.batches])
    scores = methods.score(problem, criterion("wanda", scope="global")).values["0.weight"]
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for channel, row, column in ((0, 0, 0), (3, 1, 0), (2, 1, 1)):
        norm = padded[:, channel, row : row + 5, column : column + 5].norm()
        assert torch.allclose(scores[:, channel, row, column], problem.weights["0.weight"][:, channel, row, column].abs() * norm)


def test_wanda_compares_within_rows_and_changes_no_weight() -> None:
    problem = network()
    before = {n: w.detach().clone() for n, w in problem.weights.items()}
    mask = methods.cut(problem, criterion("wanda"), WEIGHT, 0.5)
    assert all(abs(int(row.sum()) - row.numel() / 2) <= 1 for m in mask.values() for row in m)
    assert all(torch.equal(w, before[n] * mask[n]) for n, w in problem.weights.items())


@pytest.mark.parametrize("name", ["wanda", "magnitude", "obc"])
def test_in_a_pattern_the_scope_does_not_matter(name: str) -> None:
    masks = [methods.cut(network(), criterion(name, scope=s), pattern(2, 4), 0.5) for s in ("row", "global", "layer")]
    assert all(torch.equal(masks[0][n], other[n]) for other in masks[1:] for n in masks[0])


# --- obc


def greedy(a: Tensor, w: Tensor, most: int | None = None, size: int = 4) -> list[tuple[int, float]]:
    """(weight, loss of its step) of the greedy removal, each step by trying every weight. `most` of each group of `size` may go."""
    removed: list[int] = []
    steps: list[tuple[int, float]] = []
    total = 0.0
    while True:
        open_ = [
            j
            for j in range(len(w))
            if j not in removed and (most is None or sum(k // size == j // size for k in removed) < most)
        ]  # fmt: skip
        if not open_:
            return steps
        losses = {j: least_loss(a, w, [*removed, j])[0] for j in open_}
        best = min(losses, key=lambda j: losses[j])
        steps.append((best, losses[best] - total))
        total = losses[best]
        removed.append(best)


def test_the_order_of_removal_is_that_of_brute_force() -> None:
    problem = linear()
    a, w = moment(problem), problem.weights["weight"].detach()
    scores = methods.score(problem, criterion("obc", damping=DAMPING, scope="global")).values["weight"]
    for row in range(4):
        highest = 0.0
        steps = greedy(a, w[row])
        assert [j for j, _ in steps] == scores[row].argsort().tolist()
        for j, loss in steps:
            highest = max(highest, loss)
            assert float(scores[row, j]) == pytest.approx(highest, rel=1e-9)


def test_greedy_removal_is_close_to_the_best_subset() -> None:
    problem = linear()
    a, w = moment(problem), problem.weights["weight"].detach()
    scores = methods.score(problem, criterion("obc", damping=DAMPING)).values["weight"]
    for row in range(4):
        for k in (1, 3, 6):
            best = min(least_loss(a, w[row], list(s))[0] for s in combinations(range(8), k))
            found = least_loss(a, w[row], scores[row].argsort()[:k].tolist())[0]
            assert best <= found * (1 + 1e-9)
            assert found == pytest.approx(best) or k > 1
            assert found <= 2.0 * best


def test_the_cut_takes_the_next_step_of_the_row_whose_next_step_is_cheapest() -> None:
    problem = linear(rows=6)
    a, w = moment(problem), problem.weights["weight"].detach().clone()
    left = [greedy(a, row) for row in w]
    wanted = torch.ones(6, 8, dtype=torch.bool)
    for _ in range(count_masked(0.6, 48)):
        row = min((r for r in range(6) if left[r]), key=lambda r: left[r][0][1])
        wanted[row, left[row].pop(0)[0]] = False
    assert torch.equal(methods.cut(problem, criterion("obc", damping=DAMPING), WEIGHT, 0.6)["weight"], wanted)
    for row in range(6):
        assert torch.allclose(problem.weights["weight"][row], least_loss(a, w[row], (~wanted[row]).nonzero().flatten().tolist())[1])


def test_steps_that_become_cheaper_follow_their_row() -> None:
    """Two inputs that are nearly equal: the first removal is cheap, or the second one would be."""
    a = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    w = torch.tensor([[1.0, -1.0, 0.5], [1.0, -1.0, 0.05]]).double()
    scores = removal_order(torch.linalg.inv(a), w, torch.ones(2, 3, dtype=torch.bool))
    losses = [loss for _, loss in greedy(a, w[0])]
    assert losses[1] < losses[0]
    assert bool((scores.sort(1).values.diff(dim=1) > 0).all())
    assert float(scores[0].sort().values[1]) == pytest.approx(losses[0])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_in_a_pattern_full_groups_are_skipped(n: int, m: int) -> None:
    problem = linear()
    a, w = moment(problem), problem.weights["weight"].detach().clone()
    mask = methods.cut(problem, criterion("obc", damping=DAMPING), pattern(n, m), 1 - n / m)["weight"]
    for row in range(4):
        removed = [j for j, _ in greedy(a, w[row], most=m - n, size=m)]
        assert sorted(removed) == (~mask[row]).nonzero().flatten().tolist()
        assert torch.allclose(problem.weights["weight"][row], least_loss(a, w[row], removed)[1])


@pytest.mark.parametrize("name", ["obc", "sparsegpt", "wanda"])
def test_with_uncorrelated_inputs_the_order_is_that_of_magnitude(name: str) -> None:
    """Within a row, and where a block has all columns and one row."""
    problem = linear(rows=1, columns=20, correlated=False)
    w = problem.weights["weight"].detach().clone()
    mask = methods.cut(problem, criterion(name), WEIGHT, 0.7)["weight"]
    assert torch.equal(mask, w.abs() >= w.abs().flatten().sort().values[14])
    assert torch.allclose(problem.weights["weight"], w * mask)


def test_first_losses_and_updates_are_those_of_kfac_obs_without_output_curvature() -> None:
    """F = B ⊗ A + λ with B = 1; the loss is half that of `obc`. The second cut starts from an earlier mask."""
    problem = network()
    obc = criterion("obc", damping=DAMPING, scope="global")
    for sparsity in (0.4, 0.7):
        with evaluating(problem.model):
            found = layer_inputs(problem)
        scores = methods.score(problem, obc).values
        before = {n: w.detach().clone() for n, w in problem.weights.items()}
        mask = methods.cut(problem, obc, WEIGHT, sparsity)
        for name, w in before.items():
            inner = (found[name].total / found[name].count)[:, found[name].columns][:, :, found[name].columns]
            lam = DAMPING * inner.diagonal(dim1=1, dim2=2).mean()
            fisher = Kronecker(torch.eye(w.shape[0]).double().unsqueeze(0), inner, w.shape).precision(lam)
            alive, kept = problem.mask[name].flatten(), mask[name].flatten()
            if sparsity == 0.4:
                first = (w.square() / (2.0 * fisher.inverse().diagonal().view(w.shape))).flatten(1).min(1).values
                assert torch.allclose(scores[name].flatten(1).min(1).values, 2.0 * first)
            removed = torch.where(alive & ~kept, w.flatten(), 0.0)
            wanted = w.flatten() * kept + solve(fisher, kept, fisher.times(removed) * kept)
            assert torch.allclose(problem.weights[name].flatten(), wanted, atol=1e-4 * float(w.abs().max()))
        problem = replace(problem, mask=mask)


# --- sparsegpt


def swept(a: Tensor, w: Tensor, fraction: float, groups: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """(weights, mask) of one block, by loops: the inverse of the remaining part of A is computed anew for every column."""
    rows, columns = w.shape
    w, kept = w.clone(), torch.ones(rows, columns, dtype=torch.bool)
    rest = [torch.linalg.inv(a[j:, j:]) for j in range(columns)]
    scale = [float(r[0, 0]) for r in rest]
    if groups is None:
        order = sorted((float(w[i, j]) ** 2 / scale[j], i, j) for i in range(rows) for j in range(columns))
        for _, i, j in order[: round(fraction * rows * columns)]:
            kept[i, j] = False
    for j in range(columns):
        if groups is not None and j % groups[1] == 0:
            for i in range(rows):
                order_ = sorted(range(j, j + groups[1]), key=lambda k: float(w[i, k]) ** 2 / scale[k])
                kept[i, order_[: groups[1] - groups[0]]] = False
        for i in range(rows):
            if not kept[i, j]:
                w[i, j:] -= float(w[i, j]) * rest[j][0] / scale[j]
                w[i, j] = 0.0
    return w, kept


@pytest.mark.parametrize("groups", [None, (2, 4), (1, 4), (1, 2)])
def test_sparsegpt_is_the_sweep_by_plain_loops(groups: tuple[int, int] | None) -> None:
    problem = linear()
    a, w = moment(problem), problem.weights["weight"].detach().clone()
    fraction = 0.6 if groups is None else 1 - groups[0] / groups[1]
    wanted, kept = swept(a, w, fraction, groups)
    granularity = WEIGHT if groups is None else pattern(*groups)
    mask = methods.cut(problem, criterion("sparsegpt", damping=DAMPING), granularity, fraction)["weight"]
    assert torch.equal(mask, kept)
    assert torch.allclose(problem.weights["weight"], wanted)


def test_a_second_sweep_removes_earlier_weights_first_and_carries_their_error() -> None:
    problem = linear()
    a = moment(problem)
    first = methods.cut(problem, criterion("sparsegpt", damping=DAMPING), WEIGHT, 0.4)["weight"]
    w = problem.weights["weight"].detach().clone()
    again = replace(problem, mask={"weight": first})
    mask = methods.cut(again, criterion("sparsegpt", damping=DAMPING), WEIGHT, 0.7)["weight"]
    rest = [torch.linalg.inv(a[j:, j:]) for j in range(8)]
    saliency = torch.stack([w[:, j].square() / rest[j][0, 0] for j in range(8)], 1)
    assert not bool((mask & ~first).any())
    assert float(saliency[mask].min()) > float(saliency[first & ~mask].max())
    for j in range(8):
        w[:, j:] -= ((w[:, j] * ~mask[:, j]) / rest[j][0, 0]).unsqueeze(1) * rest[j][0]
    assert torch.allclose(problem.weights["weight"], w * mask)


def test_blocks_choose_around_an_earlier_mask() -> None:
    """In later blocks the errors have moved masked weights away from zero: they still count first to the fraction of the block."""
    problem = linear(columns=16)
    even = torch.arange(64).view(4, 16) % 2 == 0
    problem = replace(problem, mask={"weight": even})
    methods.apply_mask(problem.model, problem.mask)
    scores = methods.score(replace(problem, target=0.625), criterion("sparsegpt", block=4)).values["weight"]
    assert bool((scores[~even] < 0).all())
    assert int((scores < 0).sum()) == 40


def test_a_block_reads_the_weights_that_the_blocks_before_have_updated() -> None:
    """Blocks of four columns, by the sweep of one block on what is left."""
    problem = linear()
    a, w = moment(problem), problem.weights["weight"].detach().clone()
    mask = methods.cut(problem, criterion("sparsegpt", damping=DAMPING, block=4), WEIGHT, 0.5)["weight"]
    rest = [torch.linalg.inv(a[j:, j:]) for j in range(8)]
    for start in (0, 4):
        saliency = torch.stack([w[:, j].square() / rest[j][0, 0] for j in range(start, start + 4)], 1)
        lowest = saliency.flatten().argsort()[:8]
        chosen = torch.ones(16, dtype=torch.bool)
        chosen[lowest] = False
        assert torch.equal(mask[:, start : start + 4], chosen.view(4, 4))
        for j in range(start, start + 4):
            w[:, j:] -= ((w[:, j] * ~mask[:, j]) / rest[j][0, 0]).unsqueeze(1) * rest[j][0]
    assert torch.allclose(problem.weights["weight"], w * mask)


def test_all_columns_lose_the_target_and_fractions_are_carried() -> None:
    problem = network()
    sizes = {n: w.numel() for n, w in problem.weights.items()}
    mask = methods.cut(problem, criterion("sparsegpt", block=16), WEIGHT, 0.77)
    assert sum(int((~m).sum()) for m in mask.values()) == count_masked(0.77, sum(sizes.values()))
    assert all(abs(int((~m).sum()) - 0.77 * sizes[n]) <= 1 for n, m in mask.items())


def test_the_choice_of_the_scores_is_the_mask_and_has_another_one_for_each_target() -> None:
    problem = network()
    for target in (0.0, 0.5, 0.9):
        scores = methods.score(replace(problem, target=target), criterion("sparsegpt")).values
        chosen = sum(int((s < 0).sum()) for s in scores.values())
        assert chosen == count_masked(target, sum(s.numel() for s in scores.values()))
    assert not methods.scored_once(SparseGpt())


@pytest.mark.parametrize("name", ["wanda", "obc", "sparsegpt"])
def test_an_uneven_earlier_mask_keeps_counts_exact(name: str) -> None:
    problem = network()
    mask = methods.full_mask(problem.model)
    mask["4.weight"][:, 1:] = False
    problem = replace(problem, mask=mask)
    cut = methods.cut(problem, criterion(name), WEIGHT, 0.5)
    assert sum(int((~m).sum()) for m in cut.values()) == count_masked(0.5, sum(m.numel() for m in cut.values()))
    assert not bool((cut["4.weight"] & ~mask["4.weight"]).any())
    assert all(not w[~cut[n]].any() and w.isfinite().all() for n, w in problem.weights.items())


# --- all


@pytest.mark.parametrize("name", ["obc", "sparsegpt"])
def test_a_pattern_below_its_sparsity_is_reached_exactly(name: str) -> None:
    """`cut` and `check` count over the layers that the pattern fits; the last layer stays dense and unchanged."""
    problem, granularity = network(), pattern(2, 4)
    last = problem.weights["6.weight"].detach().clone()
    for sparsity in (0.2, 0.5):
        mask = methods.cut(problem, criterion(name), granularity, sparsity)
        problem = replace(problem, mask=mask)
        granularity.check(problem, sparsity)
    assert torch.equal(problem.weights["6.weight"], last)


@pytest.mark.parametrize("name", ["wanda", "obc", "sparsegpt"])
def test_channels_are_refused_in_one_line(name: str) -> None:
    problem = network()
    batches = list(problem.batches)
    with pytest.raises(ValueError, match=f"^'{name}' is defined for granularity 'weight' or '2:4', not 'channel'$"):
        methods.prune(problem.model, batches, method=name, sparsity=0.5, granularity="channel")
    assert methods.prune(problem.model, batches, method="wanda", sparsity=0.5, granularity="channel", scope="global")


def test_a_training_that_would_cut_channels_is_refused_before_it_starts() -> None:
    problem = network()
    before = problem.weights["0.weight"].detach().clone()
    with pytest.raises(ValueError, match=r"^'obc' is defined for granularity 'weight' or '2:4', not 'channel'$"):
        methods.train_pruned(
            problem.model, problem.batches, "obc", sparsity=0.5, schedule=methods.Gradual(), granularity="channel", epochs=4
        )  # fmt: skip
    assert torch.equal(problem.weights["0.weight"], before)


def trained() -> Problem:
    """An MLP trained on digits for eight epochs."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0).float(), torch.tensor(targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    batches = list(zip(x.split(64), y.split(64), strict=True))
    methods.train(model, batches, epochs=8, seed=0)
    return Problem(model, batches)


@pytest.mark.parametrize("granularity", [WEIGHT, pattern(2, 4)], ids=["weight", "2:4"])
def test_the_error_of_outputs_is_in_the_order_of_the_papers(granularity: methods.Granularity) -> None:
    """‖WX - ŴX‖² of a layer with the inputs of the dense network: OBC < SparseGPT < Wanda < magnitude."""
    problem = trained()
    x = torch.cat([x for x, _ in problem.batches])
    before = {n: w.detach().clone() for n, w in problem.weights.items()}
    errors: dict[str, list[float]] = {}
    for name, options in (("obc", {}), ("sparsegpt", {}), ("wanda", {}), ("magnitude", {"scope": "layer"})):
        with torch.no_grad():
            for n, w in problem.weights.items():
                w.copy_(before[n])
            inputs = {"0.weight": x, "2.weight": problem.model[:2](x)}  # type: ignore[index]
            methods.cut(problem, criterion(name, **options), granularity, 0.5)
            errors[name] = [float((v @ (before[n] - problem.weights[n]).T).square().sum()) for n, v in inputs.items()]
    for layer in (0, 1):
        ordered = [e[layer] for e in errors.values()]
        assert ordered == sorted(ordered), (layer, errors)
        assert ordered[0] < 0.5 * ordered[3]
