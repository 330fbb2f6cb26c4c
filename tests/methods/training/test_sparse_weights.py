"""STR and L0: what they compute against formulas by hand, their gradients by finite differences, and the networks that they leave."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Problem, Recipe, fit, mask_holds
from methods.training.l0 import Gates
from methods.training.str import SoftThreshold

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]
NAMES = ("str", "l0")


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def prepared(name: str, model: nn.Module, batches: Data, **options: Any) -> tuple[Problem, methods.Training, methods.Posterior]:
    problem, training = Problem(model, batches), methods.make("trainings", name, options)
    return problem, training, training.prepare(problem)


# --- STR


def test_the_soft_threshold_entry_by_entry() -> None:
    w = torch.tensor([[-2.0, -0.3, 0.0], [0.26, 0.27, 1.5]], dtype=torch.float64)
    found = SoftThreshold(torch.tensor(-1.0, dtype=torch.float64))(w).detach()
    t = logistic(-1.0)  # 0.2689
    wanted = [[math.copysign(max(abs(v) - t, 0.0), v) for v in row] for row in w.tolist()]
    assert found.tolist() == [pytest.approx(row) for row in wanted]
    assert int((found == 0).sum()) == 2


def test_the_gradients_of_the_threshold_are_those_of_the_formula() -> None:
    w = torch.tensor([-2.0, -0.1, 0.4, 1.5], dtype=torch.float64, requires_grad=True)
    layer = SoftThreshold(torch.tensor(-1.0, dtype=torch.float64))
    upstream = torch.tensor([0.3, 5.0, -0.7, 2.0], dtype=torch.float64)
    by_w, by_s = torch.autograd.grad((layer(w) * upstream).sum(), [w, layer.s])
    slope = logistic(-1.0) * (1 - logistic(-1.0))
    assert by_w.tolist() == pytest.approx([0.3, 0.0, -0.7, 2.0])
    assert float(by_s) == pytest.approx(-slope * (-0.3 - 0.7 + 2.0))  # -σ'(s) Σ sign(w) g over the weights above the threshold


def test_one_step_moves_weights_thresholds_and_biases_by_hand(batches: Data, mlp: Make) -> None:
    options = {"start": -4.0, "threshold_decay": 0.05, "weight_decay": 0.01, "lr": 0.1}
    model = mlp()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    s = {n: torch.tensor(-4.0, requires_grad=True) for n in ("0", "2")}
    leaves = {n: p.clone().requires_grad_() for n, p in before.items()}
    x, y = batches[0]
    w = {n: torch.sign(leaves[f"{n}.weight"]) * (leaves[f"{n}.weight"].abs() - torch.sigmoid(s[n])).clamp(min=0) for n in s}
    loss = F.cross_entropy(F.linear(torch.tanh(F.linear(x, w["0"], leaves["0.bias"])), w["2"], leaves["2.bias"]), y)
    gradients = torch.autograd.grad(loss, [*leaves.values(), *s.values()])
    recipe = Recipe(epochs=1)
    fit(Problem(model, [batches[0]]), methods.make("trainings", "str", options), recipe)
    rate = 0.1 * recipe.factor(1 / 2)
    after = {n: v - rate * (g + 0.01 * v) for (n, v), g in zip(before.items(), gradients, strict=False)}
    moved = {n: -4.0 - rate * (float(g) + 0.05 * -4.0) for n, g in zip(s, gradients[4:], strict=True)}
    for n, p in model.named_parameters():
        wanted = after[n]
        if n.endswith("weight"):
            wanted = wanted.sign() * (wanted.abs() - logistic(moved[n[0]])).clamp(min=0)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_the_decay_of_the_thresholds_makes_zeros(batches: Data, mlp: Make) -> None:
    zeros = []
    for decay in (0.0, 0.02, 0.05):
        model = mlp()
        methods.train(model, batches, "str", epochs=60, threshold_decay=decay, start=-8.0)
        zeros.append(sum(int((p == 0).sum()) for p in methods.prunable(model).values()))
    assert zeros[0] <= 1
    assert zeros[0] < zeros[1] < zeros[2]


# --- L0


def test_gates_in_eval_mode_are_the_formula() -> None:
    w, log_alpha = torch.tensor([2.0, -3.0, 1.0, 5.0]), torch.tensor([-4.0, 0.0, 1.0, 4.0])
    gates = Gates(log_alpha, scale=10.0).eval()
    wanted = [v * min(1.0, max(0.0, logistic(a) * 1.2 - 0.1)) for v, a in zip(w.tolist(), log_alpha.tolist(), strict=True)]
    assert gates(w).tolist() == pytest.approx(wanted, rel=1e-5)
    assert wanted[0] == 0.0
    assert wanted[3] == 5.0


@pytest.mark.parametrize("log_alpha", [-2.0, 0.3, 3.0])
def test_random_gates_are_zero_as_often_as_the_penalty_says(batches: Data, log_alpha: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = Gates(torch.full((200_000,), log_alpha), scale=3.0).train()(torch.ones(200_000)).detach()
    opened = logistic(log_alpha - 2 / 3 * math.log(0.1 / 1.1))
    assert float((z > 0).double().mean()) == pytest.approx(opened, abs=0.005)
    # P(z = 1) = 1 - Q(1): s >= (1 - γ) / (ζ - γ) = 11/12.
    full = logistic(log_alpha - 2 / 3 * math.log(11.0))
    assert float((z == 1).double().mean()) == pytest.approx(full, abs=0.005)
    model = nn.Sequential(nn.Linear(6, 3))
    problem, training, state = prepared("l0", model, batches, lam=4.0, gate_rate=9.0)
    gates: Any = model[0].parametrizations.weight[0]  # type: ignore[union-attr, index]
    gates.a.data.fill_(log_alpha / 3)
    value = training.penalty(dict(model.named_parameters()), state)
    assert value is not None
    assert float(value.detach()) == pytest.approx(4.0 / problem.samples * 18 * opened, rel=1e-5)


def test_gates_start_as_open_as_they_should_and_have_no_decay(batches: Data, mlp: Make) -> None:
    model = mlp()
    _, _, state = prepared("l0", model, batches, opened=0.8, gate_rate=100.0, weight_decay=0.01)
    gates = [p for n, p in model.named_parameters() if n.endswith(".0.a")]
    assert [p.shape for p in gates] == [(5, 6), (3, 5)]
    assert all(torch.allclose(p.detach() * 10, torch.tensor(math.log(4.0))) for p in gates)
    assert {n: round(float(d), 6) for n, d in state.decay.items()} == {
        "0.parametrizations.weight.original": 0.01, "0.bias": 0.01, "2.parametrizations.weight.original": 0.01, "2.bias": 0.01,
    }  # fmt: skip


def test_a_stronger_penalty_closes_more_gates(batches: Data, mlp: Make) -> None:
    zeros = []
    for lam in (0.0, 1.0, 10.0):
        model = mlp()
        methods.train(model, batches, "l0", epochs=40, lam=lam)
        zeros.append(sum(int((p == 0).sum()) for p in methods.prunable(model).values()))
    assert zeros[0] < zeros[1] < zeros[2] <= 45


# --- both


@pytest.mark.parametrize("name", NAMES)
def test_finish_writes_what_the_network_computes(batches: Data, mlp: Make, name: str) -> None:
    model = mlp()
    names = [n for n, _ in model.named_parameters()]
    problem, training, state = prepared(name, model, batches, **({"start": -4.0} if name == "str" else {"opened": 0.5}))
    x = batches[0][0]
    before = model.eval()(x)
    model.train()
    posterior = training.finish(problem, state)
    torch.testing.assert_close(model.eval()(x), before)
    assert [n for n, _ in model.named_parameters()] == names
    assert {n: float(d) for n, d in posterior.decay.items()} == pytest.approx(dict.fromkeys(names, 1e-3))


@pytest.mark.parametrize("name", NAMES)
def test_masked_weights_stay_zero_and_others_may_be_zero(batches: Data, mlp: Make, name: str) -> None:
    model = mlp()
    mask = methods.prune(model, method="magnitude", sparsity=0.5)
    methods.train(model, batches, name, epochs=3, mask=mask)
    assert mask_holds(model, mask)


@pytest.mark.parametrize("name", NAMES)
def test_magnitude_cuts_exactly_after_it(batches: Data, mlp: Make, name: str) -> None:
    assert methods.get(name) == methods.get(f"magnitude@{name}")
    model = mlp()
    posterior = methods.train(model, batches, name, epochs=3)
    mask = methods.prune(model, method="magnitude", sparsity=0.6, posterior=posterior)
    assert methods.kept_weights(mask) == (18, 45)
    methods.train(model, batches, name, epochs=2, mask=mask, posterior=posterior)
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with pytest.raises(ValueError, match="re-parametrises the weights, so they cannot be pruned during training"):
        methods.train_pruned(mlp(), batches, f"magnitude@{name}", sparsity=0.6, schedule=methods.Gradual(), epochs=4)
