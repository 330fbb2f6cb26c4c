"""SpaM: its closed form, its marginal likelihood and its fixed point, each against an independent reference."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import methods
from methods import Posterior, Problem, Recipe, fit
from methods.curvature.blocks import Diagonal
from methods.curvature.compute import curvature
from methods.posterior.marginal_likelihood import closed_form, log_marginal_likelihood
from methods.training.spam import Spam

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]


def occam(d: Any, h: Any, square: Any) -> Any:
    """What a precision adds to the log marginal likelihood, as in methods.md 8.1; any broadcasting arrays."""
    return -0.5 * (np.log(h + d) - np.log(d) + d * square)


def evidence_lost(log_d: float, h: Any, norm: float) -> Any:
    """What a shared precision costs: -½ [n log d - Σ log(h + d) - d ‖θ‖²]."""
    return -occam(math.exp(log_d), h, norm / len(h)).sum()


def double(data: Data) -> Data:
    return [(x.double(), y) for x, y in data]


def total_loss(problem: Problem) -> float:
    with torch.no_grad():
        return sum(float(problem.loss(problem.model(x), y)) * len(y) for x, y in problem.batches)


# --- the closed form


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("square", [1e-8, 1e-4, 0.09, 1.0, 25.0])
def test_the_closed_form_is_where_a_numerical_search_ends(h: float, square: float) -> None:
    found = float(closed_form(torch.tensor(h, dtype=torch.float64), torch.tensor(square, dtype=torch.float64)))
    search = optimize.minimize_scalar(
        lambda u: -occam(math.exp(u), h, square), bounds=(-40, 40), method="bounded", options={"xatol": 1e-10}
    )
    assert math.log(found) == pytest.approx(search.x, abs=2e-3)
    assert occam(found, h, square) >= -search.fun - 1e-12
    # The derivative vanishes: 1/d - 1/(h + d) = θ².
    assert h / (found * (h + found)) == pytest.approx(square, rel=1e-9)


def test_the_closed_form_at_the_edges() -> None:
    h, square = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([4.0, 0.0, 0.0])
    assert closed_form(h, square).tolist() == [0.0, math.inf, math.inf]


def test_the_closed_form_does_not_cancel_in_single_precision() -> None:
    # h large beside 4/θ²: the textbook form subtracts two nearly equal numbers.
    h, square = torch.tensor([1e6, 1e4]), torch.tensor([1e2, 1e4])
    exact = closed_form(h.double(), square.double())
    assert torch.allclose(closed_form(h, square).double(), exact, rtol=1e-6)
    assert not torch.allclose((0.5 * (-h + torch.sqrt(h**2 + 4 * h / square))).double(), exact, rtol=1e-3)


def test_the_closed_form_does_not_overflow_for_tiny_weights() -> None:
    h, theta = torch.tensor([1.0, 1e-3, 1e-8]), torch.tensor([1e-20, 1e-19, 1e-15])
    exact = closed_form(h.double(), theta.double().square())
    assert torch.allclose(closed_form(h, theta.square()).double(), exact, rtol=1e-3)


# --- the marginal likelihood


def test_the_marginal_likelihood_is_the_dense_gaussian_integral(mlp: Make) -> None:
    """log q = -loss + log p(θ) + (K/2) log 2π - ½ log det P, with dense matrices and torch's own density."""
    model = mlp().double()
    generator = torch.Generator().manual_seed(0)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    h = {n: torch.rand(s, generator=generator, dtype=torch.float64) * 9 for n, s in shapes.items()}
    prior = {n: torch.rand(s if len(s) > 1 else (), generator=generator, dtype=torch.float64) + 0.01 for n, s in shapes.items()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    d = torch.cat([prior[n].expand(s).flatten() for n, s in shapes.items()])
    precision = torch.diag(torch.cat([h[n].flatten() for n in shapes]) + d)
    dense = (
        -12.5
        + MultivariateNormal(torch.zeros_like(theta), precision_matrix=torch.diag(d)).log_prob(theta)
        + 0.5 * len(theta) * math.log(2 * math.pi)
        - 0.5 * torch.linalg.slogdet(precision).logabsdet
    )
    assert evidence_of(model, prior, h, 12.5) == pytest.approx(float(dense), rel=1e-12)


def test_the_marginal_likelihood_of_a_quadratic_loss_is_its_integral() -> None:
    """One weight, loss c + ½h(θ - a)²: at the mode of the joint the Laplace approximation is exact."""
    c, h, a, d = 0.7, 3.0, 1.4, 0.6
    mode = h * a / (h + d)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, mode)
    ours = evidence_of(
        model,
        {"weight": torch.tensor(d).double()},
        {"weight": torch.full((1, 1), h).double()},
        c + 0.5 * h * (mode - a) ** 2,
    )
    density = math.sqrt(d / (2 * math.pi))
    integral, _ = integrate.quad(lambda t: math.exp(-c - 0.5 * h * (t - a) ** 2) * density * math.exp(-0.5 * d * t * t), -20, 20)
    assert ours == pytest.approx(math.log(integral), rel=1e-9)


# --- updates of the prior


def updated(problem: Problem, spam: Spam) -> tuple[Posterior, dict[str, Tensor], dict[str, Tensor]]:
    """The posterior after one update, beside the curvature (divided by T) and squares it was made of."""
    state = spam.after_epoch(problem, spam.prepare(problem), 1, 10)
    h = {n: v / spam.temperature for n, v in curvature(problem, "ef").diagonal.items()}
    return state, h, {n: p.detach().square() for n, p in problem.model.named_parameters()}


def spam(**options: Any) -> Spam:
    return Spam(**{"burn_in": 0.0, "frequency": 1, "share": 1.0, "memory": 0.0, "curvature": "ef", **options})


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("prior", ["layer", "scalar"])
def test_shared_precisions_are_a_stationary_point(batches: Data, mlp: Make, prior: str, temperature: float) -> None:
    problem = Problem(mlp().double(), double(batches))
    state, h, squares = updated(problem, spam(prior=prior, temperature=temperature, weight_decay=1e-6, lr=0.01))
    groups = [[n] for n in h] if prior == "layer" else [list(h)]
    for group in groups:
        d = state.prior[group[0]]
        assert all(state.prior[n].dim() == 0 and state.prior[n] == d for n in group)
        curvature, norm = torch.cat([h[n].flatten() for n in group]), sum(squares[n].sum() for n in group)
        gamma = (curvature / (curvature + d)).sum()
        assert float(d * norm) == pytest.approx(float(gamma), rel=1e-4)
        search = optimize.minimize_scalar(evidence_lost, args=(curvature.numpy(), float(norm)), bounds=(-15, 15), method="bounded")
        assert math.log(d) == pytest.approx(search.x, abs=1e-3)


def test_a_precision_for_each_parameter_is_the_closed_form_between_floor_and_cap(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp().double(), double(batches))
    with torch.no_grad():
        problem.model[0].weight[0, 0] = 0.0
    state, h, squares = updated(problem, spam(lr=0.3, weight_decay=0.1, temperature=0.5))
    floor, cap = 0.1 * 64 / 0.5, 64 / (0.5 * 0.3)
    for n, d in state.prior.items():
        free = 0.5 * (-h[n] + (h[n].square() + 4 * h[n] / squares[n]).sqrt())
        assert torch.allclose(d, free.clamp(floor, cap), rtol=1e-9)
    everything = torch.cat([d.flatten() for d in state.prior.values()])
    assert (everything == floor).any()
    assert (everything == cap).any()
    assert ((everything > floor) & (everything < cap)).any()


@pytest.mark.parametrize("prior", ["layer", "scalar"])
def test_shared_precisions_stay_between_floor_and_cap(batches: Data, mlp: Make, prior: str) -> None:
    for scale, bound in ((1e2, 0.01 * 64), (1e-6, 64 / 0.1)):
        model = mlp().double()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        state, _, _ = updated(Problem(model, double(batches)), spam(prior=prior, weight_decay=0.01, lr=0.1))
        values = [float(d) for d in state.prior.values()]
        assert pytest.approx(bound) in values
        assert all(0.01 * 64 * (1 - 1e-9) <= v <= 64 / 0.1 * (1 + 1e-9) for v in values)


@pytest.mark.parametrize("prior", ["parameter", "layer", "scalar"])
def test_a_dead_parameter_has_a_finite_precision(batches: Data, prior: str) -> None:
    class WithUnused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(2, 2)
            nn.init.zeros_(self.unused.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    state, h, _ = updated(Problem(WithUnused(), batches), spam(prior=prior))
    assert not h["unused.weight"].any()
    assert all(d.isfinite().all() and (d > 0).all() for d in state.prior.values())


@pytest.mark.parametrize("prior", ["parameter", "layer", "scalar"])
def test_an_update_raises_the_marginal_likelihood_and_reports_it(batches: Data, mlp: Make, prior: str) -> None:
    problem = Problem(mlp().double(), double(batches))
    state, h, _ = updated(problem, spam(prior=prior))
    before = evidence_of(problem.model, spam().prepare(problem).prior, h, total_loss(problem))
    after = evidence_of(problem.model, state.prior, h, total_loss(problem))
    assert after > before
    assert state.marginal_likelihood == (pytest.approx(after),)


def test_updates_come_after_the_burn_in_at_their_frequency(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp(), batches)
    training = spam(burn_in=0.5, frequency=2)
    state = training.prepare(problem)
    assert [e for e in range(1, 11) if training.after_epoch(problem, state, e, 10) is not state] == [6, 8, 10]
    assert len(fit(problem, training, Recipe(epochs=10)).marginal_likelihood) == 3 + 1
    assert len(fit(problem, spam(burn_in=1.0), Recipe(epochs=10)).marginal_likelihood) == 1


# --- the posterior that is left


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_posterior_holds_the_last_prior_and_the_curvature_at_the_final_weights(batches: Data, mlp: Make, temperature: float) -> None:
    problem = Problem(mlp().double(), double(batches))
    posterior = fit(problem, spam(temperature=temperature), Recipe(epochs=4))
    h = {n: v / temperature for n, v in curvature(problem, "ef").diagonal.items()}
    assert posterior.samples == 64
    assert posterior.curvature.keys() == posterior.prior.keys() == h.keys()
    for n, d in posterior.prior.items():
        assert torch.allclose(posterior.curvature[n], h[n])
        assert torch.allclose(posterior.precision(n), h[n] + d)
        assert not torch.allclose(d, d.flatten()[0])
    evidence = sum(
        occam(posterior.prior[n].numpy(), h[n].numpy(), p.detach().square().numpy()).sum() for n, p in problem.model.named_parameters()
    )
    assert posterior.marginal_likelihood[-1] == pytest.approx(-total_loss(problem) / temperature + evidence)


def test_the_posterior_survives_a_round_trip(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp(), batches)
    posterior = fit(problem, spam(), Recipe(epochs=3))
    assert posterior.decay  # computed once, and kept: it must not travel to a changed copy
    twin = replace(posterior)
    assert twin == posterior
    assert methods.prune(mlp(), batches, "opd", sparsity=0.5, posterior=twin).keys() == problem.weights.keys()
    doubled = replace(posterior, samples=2 * posterior.samples)
    for n, rate in posterior.decay.items():
        assert torch.allclose(doubled.decay[n], rate / 2)
        assert torch.equal(rate, posterior.prior[n] * (posterior.temperature / posterior.samples))


def test_temperature_enters_once(batches: Data, mlp: Make) -> None:
    """Each step descends -(T/N) log joint, with log joint = -(1/T) Σ ℓ - ½ Σ d θ²: T divides the likelihood and nothing else."""
    t, n = 0.25, 64
    problem = Problem(mlp().double(), double(batches))
    training = spam(temperature=t, weight_decay=0.01)
    state = training.prepare(problem)
    assert all(float(d) == pytest.approx(0.01 * n / t) for d in state.prior.values())
    state = training.after_epoch(problem, state, 1, 10)
    x, y = (torch.cat(part) for part in zip(*problem.batches, strict=True))
    parameters = dict(problem.model.named_parameters())
    ours = problem.loss(problem.model(x), y) + sum(0.5 * (c * parameters[k] ** 2).sum() for k, c in state.decay.items())
    sums = problem.loss(problem.model(x), y) * n
    joint = -sums / t - 0.5 * sum((state.prior[k] * p**2).sum() for k, p in parameters.items())
    for a, b in zip(torch.autograd.grad(ours, parameters.values()), torch.autograd.grad(joint, parameters.values()), strict=True):
        assert torch.allclose(a, -b * t / n, rtol=1e-10)


def test_the_first_penalty_is_that_of_map_at_any_temperature(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp(), batches)
    for t in (1.0, 0.3, 0.05):
        decay = spam(temperature=t, weight_decay=0.02).prepare(problem).decay
        assert decay.keys() == dict(problem.model.named_parameters()).keys()
        assert all(torch.allclose(c, torch.tensor(0.02)) for c in decay.values())


def evidence_of(model: nn.Module, prior: dict[str, Tensor], h: dict[str, Tensor], loss: float) -> float:
    squares = {n: p.detach().square() for n, p in model.named_parameters()}
    return log_marginal_likelihood({n: Diagonal(v) for n, v in h.items()}, prior, squares, loss)


# --- what the closed form means for the criterion


def test_opd_at_the_closed_form_ranks_as_obd(batches: Data, mlp: Make) -> None:
    """OPD = (s + √(s² + 4s))/2 with s = hθ², which rises with OBD's s: identical masks wherever nothing is clamped."""
    model = mlp().double()
    data = double(batches)
    h = curvature(Problem(model, data), "ef").diagonal
    prior = {n: closed_form(h[n], p.detach().square()) for n, p in model.named_parameters()}
    posterior = Posterior(prior, 64, curvature=h)
    opd = methods.scores(model, data, "opd", posterior=posterior)
    obd = methods.scores(model, data, "obd", curvature="ef")
    for n, s in obd.items():
        s = 2 * 64 * s  # Σ_n instead of the mean, and no ½
        assert torch.allclose(opd[n], 0.5 * (s + (s.square() + 4 * s).sqrt()))
    flat = [torch.cat([v.flatten() for v in values.values()]).argsort() for values in (opd, obd)]
    assert torch.equal(*flat)
    magnitude = torch.cat([w.detach().abs().flatten() for w in methods.prunable(model).values()]).argsort()
    assert not torch.equal(flat[0], magnitude)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_batches_than_shares_are_read_in_turn(batches: Data, mlp: Make, n: int) -> None:
    """A share is at least one batch, whatever the share and however few batches there are."""
    problem = Problem(mlp(), batches[:n])
    posterior = fit(problem, spam(share=0.01), Recipe(epochs=5))
    assert len(posterior.marginal_likelihood) == 6
    assert all(math.isfinite(v) for v in posterior.marginal_likelihood)


def test_memory_is_the_running_average_of_the_curvature(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp(), batches)
    training, forgetful = spam(memory=0.75), spam(memory=0.0)
    old = training.after_epoch(problem, training.prepare(problem), 1, 9)
    with torch.no_grad():
        problem.model[0].weight.mul_(1.5)
    new, fresh = (t.after_epoch(problem, old, 2, 9) for t in (training, forgetful))
    for n, h in new.curvature.items():
        assert torch.allclose(h, 0.75 * old.curvature[n] + 0.25 * fresh.curvature[n], rtol=1e-5, atol=1e-8)


def test_a_weight_that_is_cut_leaves_the_running_average(batches: Data, mlp: Make) -> None:
    problem, training = Problem(mlp(), batches), spam(memory=0.75)
    state = training.after_epoch(problem, training.prepare(problem), 1, 9)
    problem.mask["0.weight"][:, ::2] = False
    methods.apply_mask(problem.model, problem.mask)
    state = training.after_epoch(problem, state, 2, 9)
    assert not state.curvature["0.weight"][:, ::2].any()
    assert state.curvature["0.weight"][:, 1::2].any()
