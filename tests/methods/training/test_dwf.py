"""Deep weight factorisation: its start, its penalty and its steps against references by hand, and the collapse to plain weights."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Posterior, Problem, Recipe, Stage, fit, mask_holds
from methods.training.dwf import FARTHEST, NEAREST, Dwf, Product

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]
DEPTHS = (2, 3, 4)


class Net(nn.Module):
    """Every kind of parameter in an order of its own: norm first, conv without bias, a bare parameter, a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norm = nn.BatchNorm1d(6)
            self.conv = nn.Conv1d(1, 4, 3, padding=1, bias=False)
            self.head = nn.Linear(24, 3)
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.conv(self.norm(x)[:, None])).flatten(1))
        return logits * self.scale


def factors(module: nn.Module) -> list[Tensor]:
    """The factors of the weight of a module that is being trained."""
    return [p.detach().clone() for p in module.parametrizations["weight"].parameters()]


def product(of: list[Tensor]) -> Tensor:
    return torch.stack(of).prod(0)


def prepared(model: nn.Module, batches: Data, seed: int = 0, **options: Any) -> tuple[Problem, Posterior]:
    problem = Problem(model, batches, seed=seed)
    return problem, Dwf(**options).prepare(problem)


def gaussian(rows: int = 200, columns: int = 150, deviation: float = 0.03) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Linear(columns, rows)
        nn.init.normal_(layer.weight, std=deviation)
    return layer


# --- the start


@pytest.mark.parametrize("depth", DEPTHS)
def test_training_starts_from_the_given_network_but_for_weights_near_zero(batches: Data, depth: int) -> None:
    layer = gaussian()
    given = layer.weight.detach().clone()
    _, state = prepared(layer, batches, depth=depth)
    assert len(factors(layer)) == depth
    nearest = NEAREST * given.square().mean().sqrt()
    expected = torch.where(given < 0, -1, 1) * given.abs().clamp(min=nearest)
    assert int((given.abs() < nearest).sum()) > 100
    assert torch.allclose(layer.weight, expected, rtol=1e-5, atol=0)
    assert torch.allclose(layer.weight, product(factors(layer)), rtol=1e-6, atol=0)
    assert float(layer.weight.detach().var()) == pytest.approx(float(given.var()), rel=1e-4)
    assert state.prior.keys() == dict(layer.named_parameters()).keys()


@pytest.mark.parametrize("depth", DEPTHS)
def test_factors_are_a_truncated_normal_draw_neither_near_zero_nor_far_off(batches: Data, depth: int) -> None:
    # Of a weight that is one everywhere the factors are the draw itself, divided by the mean it has over the factors.
    layer = gaussian()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    prepared(layer, batches, depth=depth)
    sizes = torch.stack(factors(layer)).abs()
    ratio = sizes[0] / sizes[1]
    bound = (FARTHEST / NEAREST) ** (1 / depth)
    assert 1 / bound <= float(ratio.min()) < 1.2 / bound**0.9
    assert bound**0.9 / 1.2 < float(ratio.max()) <= bound
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        drawn = torch.randn(2, 400_000).abs()
    low, high = NEAREST ** (1 / depth), FARTHEST ** (1 / depth)
    drawn = drawn[:, ((drawn > low) & (drawn < high)).all(0)]
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    assert torch.allclose(ratio.log().quantile(quantiles), (drawn[0] / drawn[1]).log().quantile(quantiles), atol=0.04)
    assert not torch.allclose(sizes[0], sizes[1], rtol=0.1)  # balanced factors could not change the sign of their product
    for factor in factors(layer):
        assert float((factor > 0).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("depth", DEPTHS)
def test_no_factor_of_a_gaussian_layer_is_far_off(batches: Data, depth: int) -> None:
    # Scaled apart from their weight, an unlucky division of a large weight would leave the interval by far.
    layer = gaussian()
    deviation = float(layer.weight.detach().std())
    prepared(layer, batches, depth=depth)
    sizes = torch.stack(factors(layer)).abs() / deviation ** (1 / depth)
    assert float(sizes.max()) < 1.6 * FARTHEST ** (1 / depth)
    assert float(sizes.min()) > 0.5 * NEAREST ** (1 / depth)
    assert float(sizes.square().mean()) == pytest.approx(1.0, abs=0.35)


def test_all_but_prunable_weights_that_train_stay_as_they_are(batches: Data) -> None:
    model = Net()
    model.conv.weight.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _, state = prepared(model, batches, depth=3, lam=0.02, weight_decay=0.005)
    after = dict(model.named_parameters())
    split = {f"head.parametrizations.weight.original{d}" for d in range(3)}
    assert after.keys() == before.keys() - {"head.weight"} | split
    assert all(torch.equal(after[n], before[n]) for n in before.keys() - {"head.weight"})
    assert {n: float(d) for n, d in state.decay.items()} == pytest.approx(
        {n: 2 * 0.02 / 3 if n in split else 0.005 for n in after.keys() - {"conv.weight"}}
    )


def test_a_weight_that_is_all_zero_is_not_factorised_and_learns(batches: Data, mlp: Make) -> None:
    # All its factors would be zero, and none would have a gradient.
    model = mlp()
    nn.init.zeros_(model[2].weight)
    fit(Problem(model, batches), Dwf(), Recipe(epochs=3))
    assert model[2].weight.all()


def test_a_weight_of_two_modules_is_theirs_as_before(batches: Data) -> None:
    # Factorised in each, it would be two weights.
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    before = model[0].weight.detach().clone()
    problem, state = prepared(model, batches, weight_decay=0.005)
    assert float(state.decay["0.weight"]) == pytest.approx(0.005)
    assert len(factors(model[3])) == 2
    Dwf().finish(problem, state)
    fit(problem, Dwf(), Recipe(epochs=1))
    assert model[2].weight is model[0].weight
    assert not torch.equal(model[0].weight, before)


def test_a_module_used_twice_is_factorised_once(batches: Data) -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    fit(Problem(model, batches), Dwf(), Recipe(epochs=1))
    assert model[0] is model[2]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("depth", [1, -2, 2.0])
def test_a_depth_out_of_range_is_refused(depth: Any) -> None:
    with pytest.raises(ValueError, match=r"depth=.* is not an integer >= 2"):
        Dwf(depth=depth)


# --- the penalty and the steps


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_prior_is_the_penalty_on_the_factors(batches: Data, depth: int) -> None:
    layer = gaussian(3, 6)
    _, state = prepared(layer, batches, depth=depth, lam=0.02)
    parameters = dict(layer.named_parameters())
    ws = [p for n, p in parameters.items() if n != "bias"]
    gradients = torch.autograd.grad(0.02 / depth * sum((w**2).sum() for w in ws), ws)
    for d, gradient in enumerate(gradients):
        name = f"parametrizations.weight.original{d}"
        assert torch.allclose(state.decay[name] * parameters[name], gradient)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_penalty_is_that_of_the_product_where_factors_are_balanced_and_more_elsewhere(batches: Data, depth: int) -> None:
    lam, layer = 0.02, gaussian(30, 20, deviation=1.0)
    _, state = prepared(layer, batches, depth=depth, lam=lam)
    w = layer.weight.detach()

    def penalty(of: list[Tensor]) -> float:
        """½ Σ d θ² T / N, which is what the loop minimises."""
        return sum(float(0.5 * (state.decay[f"parametrizations.weight.original{d}"] * f**2).sum()) for d, f in enumerate(of))

    smallest = float(lam * w.abs().pow(2 / depth).sum())
    assert penalty([w.abs() ** (1 / depth)] * depth) == pytest.approx(smallest, rel=1e-5)
    assert penalty(factors(layer)) > 1.1 * smallest


@pytest.mark.parametrize("depth", DEPTHS)
def test_one_step_by_hand(batches: Data, depth: int) -> None:
    ours, theirs = gaussian(3, 6, deviation=0.5), gaussian(3, 6, deviation=0.5)
    x, y = batches[0]
    prepared(theirs, [batches[0]], depth=depth)
    ws, w = factors(theirs), product(factors(theirs))
    z = x @ w.T + theirs.bias.detach()
    error = (z.softmax(1) - F.one_hot(y, 3)) / len(y)  # gradient of the mean cross entropy in the logits
    slope, lr = error.T @ x, 0.3 * Recipe(epochs=1).factor(0.5)
    stepped = [f - lr * (slope * w / f + 2 * 0.02 / depth * f) for f in ws]
    bias = theirs.bias.detach() - lr * (error.sum(0) + 0.005 * theirs.bias.detach())
    fit(Problem(ours, [batches[0]]), Dwf(depth=depth, lam=0.02, lr=0.3, weight_decay=0.005), Recipe(epochs=1))
    assert torch.allclose(ours.weight, product(stepped), atol=1e-5)
    assert torch.allclose(ours.bias, bias, atol=1e-6)
    assert not torch.allclose(ours.weight, w, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_forward_weight_is_the_product_after_every_epoch(batches: Data, mlp: Make, optimizer: str) -> None:
    model = mlp()
    seen = []

    def look(record: methods.EpochRecord) -> None:
        assert torch.equal(model[0].weight, product(factors(model[0])))
        seen.append(model[0].weight.detach().clone())

    fit(Problem(model, batches), Dwf(depth=3), Recipe(epochs=3, optimizer=optimizer), callbacks=[look])
    assert len(seen) == 3
    assert torch.equal(seen[-1], model[0].weight)
    assert not torch.equal(seen[0], seen[1])


def test_more_weights_come_near_zero_than_under_an_l2_penalty(batches: Data, mlp: Make) -> None:
    near = {}
    for name, training in {"map": methods.make("trainings", "map", {"weight_decay": 0.02}), "dwf": Dwf(lam=0.02)}.items():
        problem = Problem(mlp(), batches)
        fit(problem, training, Recipe(epochs=60))
        w = torch.cat([p.detach().abs().flatten() for p in problem.weights.values()])
        near[name] = int((w < 1e-3 * w.max()).sum())
        with torch.no_grad():
            assert sum(int((problem.model(x).argmax(1) == y).sum()) for x, y in batches) > 0.85 * 64
    assert near["dwf"] > near["map"] + 8


# --- the collapse


def test_names_order_and_outputs_are_those_of_the_plain_network(batches: Data) -> None:
    model, fresh = Net(), Net()
    outputs = []

    def look(record: methods.EpochRecord) -> None:
        model.eval()
        outputs.append(model(batches[0][0]).detach())

    posterior = fit(Problem(model, batches), Dwf(depth=3, weight_decay=0.004), Recipe(epochs=2), callbacks=[look])
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in fresh.named_parameters()]
    assert list(methods.prunable(model)) == list(methods.prunable(fresh)) == ["conv.weight", "head.weight"]
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]
    assert all(p.requires_grad and p.is_leaf and p.grad is None for p in model.parameters())
    assert torch.equal(model.eval()(batches[0][0]), outputs[-1])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(batches[0][0]), outputs[-1])
    assert posterior.curvature == {}
    assert {n: float(d) for n, d in posterior.decay.items()} == pytest.approx({n: 0.004 for n, _ in fresh.named_parameters()})


@pytest.mark.parametrize("method", ["dwf", "opd@dwf", "obd@dwf", "random@dwf"])
def test_the_collapsed_network_is_cut_and_fine_tuned_in_its_plain_weights(batches: Data, method: str) -> None:
    model, chosen = Net(), methods.get(method)
    posterior = fit(Problem(model, batches), chosen.make_training(), Recipe(epochs=3))
    problem = Problem(model, batches, posterior=posterior)
    mask = methods.cut(problem, chosen.make_criterion(), methods.make("granularities", "weight", {}), 0.8)
    assert methods.kept_weights(mask) == (17, 84)
    before = copy.deepcopy(model.state_dict())
    problem.mask = mask
    assert fit(problem, chosen.make_training(), Recipe(epochs=2, lr_scale=0.1), previous=posterior) is posterior
    assert list(model.state_dict()) == list(before)
    assert mask_holds(model, mask)
    assert not torch.equal(model.head.weight, before["head.weight"])


# --- masks and randomness


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masks_hold_on_every_factor(batches: Data, optimizer: str, depth: int) -> None:
    model = Net()
    mask = methods.prune(model, method="random", sparsity=0.7)
    looked = []

    def look(record: methods.EpochRecord) -> None:
        for name, module in {"conv.weight": model.conv, "head.weight": model.head}.items():
            for factor in factors(module):
                assert not factor[~mask[name]].any()
                assert factor[mask[name]].all()
        looked.append(record.epoch)

    fit(Problem(model, batches, mask=mask), Dwf(depth=depth), Recipe(epochs=3, optimizer=optimizer), callbacks=[look])
    assert looked == [1, 2, 3]
    assert mask_holds(model, mask)
    assert methods.kept_weights(mask)[0] == sum(int(w.count_nonzero()) for w in methods.prunable(model).values())


def test_pruning_while_the_weights_are_products_is_refused(batches: Data, mlp: Make) -> None:
    with pytest.raises(ValueError, match="'dwf' re-parametrises the weights"):
        methods.train_pruned(mlp(), batches, method="magnitude_gradual@dwf", sparsity=0.5, epochs=4)


def test_factors_follow_the_seed_and_leave_the_global_state_alone(batches: Data, mlp: Make) -> None:
    state = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        model = mlp()
        prepared(model, batches, seed=seed)
        drawn.append([factors(model[0]), factors(model[2])])
    assert torch.equal(torch.get_rng_state(), state)
    same = [[torch.equal(a, b) for a, b in zip(drawn[0][i], other[i], strict=True)] for other in drawn[1:] for i in (0, 1)]
    assert same == [[True, True]] * 2 + [[False, False]] * 2
    pair = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        pair[1].weight.copy_(pair[0].weight)
    prepared(pair, batches)
    assert not torch.equal(factors(pair[0])[0], factors(pair[1])[0])  # layers draw apart


def test_a_network_in_training_can_be_copied(batches: Data) -> None:
    model = Net()
    prepared(model, batches)
    again = copy.deepcopy(model)
    assert torch.equal(again.eval()(batches[0][0]), model.eval()(batches[0][0]))


def test_a_weight_may_be_assigned_while_it_is_a_product() -> None:
    w = torch.tensor([[0.5, -2.0], [1.0, 0.0]])
    parts = Product(3, seed=4).right_inverse(w)
    nearest = NEAREST * math.sqrt((0.25 + 4 + 1) / 4)
    assert torch.allclose(Product(3, seed=4)(*parts), torch.tensor([[0.5, -2.0], [1.0, nearest]]))


# --- through the command line


def test_dwf_is_among_all_methods_and_runs_from_the_command_line(tiny: Path, bench: Callable[..., tuple[int, str, str]]) -> None:
    dwf = methods.get("dwf")
    assert (dwf.criterion, dwf.training, dwf.stage, dwf.costly) == ("magnitude", "dwf", Stage.AFTER, False)
    assert methods.get("magnitude@dwf") is dwf
    chosen = "dwf,opd@dwf,magnitude_init@dwf,magnitude"
    code, out, err = bench("run", "--suite", "tiny.toml", "--methods", chosen, "--seeds", "0", "--output", "out")
    assert code == 0, err
    assert all(name in out for name in ("dwf", "opd@dwf", "magnitude_init@dwf", "magnitude"))
    rows = (tiny / "out" / "results.csv").read_text()
    assert "dense@dwf" in rows
    assert "failed" not in rows
