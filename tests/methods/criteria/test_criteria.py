"""Every criterion against an independent reference: by hand, by dense autograd, or by brute force."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

import methods
from methods import Posterior, Problem, count_masked
from methods.curvature.compute import curvature

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]
Values = dict[str, Tensor]

WEIGHT = methods.make("granularities", "weight", {})


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def double(data: Data) -> Data:
    return [(x.double() if x.is_floating_point() else x, y) for x, y in data]


def flat(values: Values) -> Tensor:
    return torch.cat([v.detach().flatten() for v in values.values()])


def criterion(name: str, **options: Any) -> methods.Criterion:
    return methods.make("criteria", name, options)


def close(found: Values, wanted: Values, rtol: float = 1e-9) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[n], wanted[n], rtol=rtol, atol=1e-14) for n in wanted)


# --- magnitude and the scopes


@pytest.fixture
def three() -> nn.Module:
    """Layers of very different sizes: 144, 640 and 120 weights."""
    return seeded(lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(16, 40), nn.Linear(40, 3))).double()


def kept_share(model: nn.Module, sparsity: float, scope: str, mask: methods.Mask | None = None) -> tuple[list[int], list[int]]:
    """(kept, all) weights of each layer."""
    problem = Problem(model, (), mask=mask or {})
    cut = WEIGHT.cut(problem, methods.score(problem, criterion("magnitude", scope=scope)), sparsity)
    return [int(m.sum()) for m in cut.values()], [m.numel() for m in cut.values()]


def test_magnitude_is_the_absolute_weight() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -2.0, 0.0], [-0.25, 1.0, 3.0]]))
    assert methods.scores(model)["weight"].tolist() == [[0.5, 2.0, 0.0], [0.25, 1.0, 3.0]]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 0.98])
def test_scope_layer_removes_the_same_share_of_each_layer(three: nn.Module, sparsity: float) -> None:
    kept, sizes = kept_share(three, sparsity, "layer")
    assert sum(kept) == 904 - count_masked(sparsity, 904)
    assert all(abs(k - (1 - sparsity) * n) <= 1 for k, n in zip(kept, sizes, strict=True))


@pytest.mark.parametrize(
    ("sparsity", "saturated"), [(0.1, [True, False, True]), (0.5, [False, False, True]), (0.9, [False] * 3), (0.98, [False] * 3)]
)
def test_scope_erk_allots_the_densities_found_by_bisection(three: nn.Module, sparsity: float, saturated: list[bool]) -> None:
    raw = [(8 + 2 + 3 + 3) / (8 * 2 * 3 * 3), (16 + 40) / (16 * 40), (40 + 3) / (40 * 3)]
    kept, sizes = kept_share(three, sparsity, "erk")
    low, high = 0.0, 1e3
    for _ in range(100):
        eps = (low + high) / 2
        total = sum(min(1.0, eps * r) * n for r, n in zip(raw, sizes, strict=True))
        low, high = (eps, high) if total < (1 - sparsity) * 904 else (low, eps)
    wanted = [min(1.0, eps * r) * n for r, n in zip(raw, sizes, strict=True)]
    assert all(abs(k - w) <= 1 for k, w in zip(kept, wanted, strict=True))
    assert [k == n for k, n in zip(kept, sizes, strict=True)] == saturated


def test_scope_lamp_is_the_naive_formula(three: nn.Module) -> None:
    """w² over the sum of all squares of the layer that are at least as large: equation 1, term by term."""
    scores = methods.scores(three, scope="lamp")
    for n, w in methods.prunable(three).items():
        squares = w.detach().flatten().square()
        naive = torch.stack([s / squares[squares >= s].sum() for s in squares])
        assert torch.allclose(scores[n].flatten(), naive, rtol=1e-12)
        assert scores[n].max() == 1.0


def test_scope_global_lets_layers_differ(three: nn.Module) -> None:
    with torch.no_grad():
        three[2].weight.mul_(1e-3)
    kept, sizes = kept_share(three, 0.8, "global")
    assert kept[1] == 0 < kept[0]
    assert all(k > 0 for k in kept_share(three, 0.8, "layer")[0])
    assert sizes == [144, 640, 120]


SCOPED = [name for name in methods.names("criteria") if "scope" in methods.ranges(methods.lookup("criteria", name))]


@pytest.mark.parametrize(
    ("name", "scope"), [(name, scope) for name in SCOPED for scope in methods.ranges(methods.lookup("criteria", name))["scope"].choices]
)
def test_no_scope_changes_the_order_inside_a_layer(batches: Data, mlp: Make, name: str, scope: str) -> None:
    model = mlp().double()
    plain = methods.scores(model, double(batches), name, scope="global")
    scoped = methods.scores(model, double(batches), name, scope=scope)
    for n, s in plain.items():
        rows = s.flatten(1) if scope == "row" else s.flatten()
        assert torch.equal(rows.argsort(-1), scoped[n].view(rows.shape).argsort(-1))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_scope_row_removes_the_same_share_of_each_output_row(sparsity: float) -> None:
    """Outputs are dimension 0; of a transposed convolution they are dimension 1, in each group of inputs."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(20, 5)))
    problem = Problem(model, ())
    masks = [WEIGHT.cut(problem, methods.score(problem, criterion("magnitude", scope="row")), s) for s in (sparsity, 0.95)]
    mask = masks[0]
    assert sum(int((~m).sum()) for m in mask.values()) == count_masked(sparsity, 316)
    assert all(not bool((masks[1][n] & ~m).any()) for n, m in mask.items())
    transposed = [[mask["1.weight"][2 * g : 2 * g + 2, o] for o in range(3)] for g in range(2)]
    for row in [*mask["0.weight"], *mask["2.weight"], *transposed[0], *transposed[1]]:
        assert abs(int(row.sum()) - (1 - sparsity) * row.numel()) <= 1


def test_scope_row_cannot_rank_channels() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="scope 'row' keeps the same fraction of every row, so it cannot rank a whole channel"):
        methods.prune(model, [(torch.randn(4, 6), torch.zeros(4).long())], sparsity=0.5, granularity="channel", scope="row")


@pytest.mark.parametrize("scope", ["layer", "erk", "lamp", "row"])
def test_scopes_leave_masked_weights_out_and_lowest(three: nn.Module, scope: str) -> None:
    mask = methods.full_mask(three)
    mask["0.weight"].view(-1)[::2] = False
    scores = methods.scores(three, scope=scope, mask=mask)
    assert scores["0.weight"][~mask["0.weight"]].max() < min(scores[n][m].min() for n, m in mask.items())
    if scope == "layer":
        # Shares are of the whole layer, not of what is left in it.
        kept, sizes = kept_share(three, 0.75, "layer", mask)
        assert all(abs(k - 0.25 * n) <= 1 for k, n in zip(kept, sizes, strict=True))


# --- random


def test_random_scores_are_uniform_and_come_from_the_seed_alone(mlp: Make) -> None:
    wide = seeded(lambda: nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100)))
    a, b = methods.scores(wide, method="random").values()
    assert not torch.equal(a, b)
    both = torch.cat([a.flatten(), b.flatten()])
    assert 0 <= both.min() <= both.max() < 1
    # Kolmogorov-Smirnov distance of 20000 draws from the uniform distribution: 1.63/√n is its 99 % point.
    steps = torch.arange(1, 20_001) / 20_000
    assert (both.sort().values - steps).abs().max() < 1.63 / 20_000**0.5 + 1 / 20_000
    first, again, other = (methods.scores(mlp(seed), method="random", seed=s) for seed, s in ((0, 3), (1, 3), (0, 4)))
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))


# --- snip


def connection_sensitivity(model: nn.Module, x: Tensor, y: Tensor) -> Values:
    """∂L/∂c at c = 1, with a multiplier c on every prunable weight."""
    c = {n: torch.ones_like(w, requires_grad=True) for n, w in methods.prunable(model).items()}
    weights = {n: p.detach() * c[n] if n in c else p.detach() for n, p in model.named_parameters()}
    loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
    return dict(zip(c, torch.autograd.grad(loss, list(c.values())), strict=True))


def test_snip_is_the_derivative_by_the_multipliers(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    wanted = {n: g.abs() for n, g in connection_sensitivity(model, *data[0]).items()}
    assert close(methods.scores(model, data, "snip"), wanted)


def test_snip_takes_the_absolute_value_of_the_aggregate(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    data[1] = (data[1][0][:5], data[1][1][:5])  # batches of 16, 5 and 16: the mean is over samples, not over batches
    found = methods.scores(model, data, "snip", n_batches=3)
    together = connection_sensitivity(model, *(torch.cat(part) for part in zip(*data[:3], strict=True)))
    assert close(found, {n: g.abs() for n, g in together.items()})
    apart = [connection_sensitivity(model, x, y) for x, y in data[:3]]
    assert not close(found, {n: sum(g[n].abs() for g in apart) / 3 for n in found}, rtol=1e-2)
    assert not close(found, {n: (sum(g[n] for g in apart) / 3).abs() for n in found}, rtol=1e-2)
    assert close(methods.scores(model, data, "snip", n_batches=10), methods.scores(model, data, "snip", n_batches=4))


def test_iterative_snip_scores_anew_with_the_mask_applied(batches: Data, mlp: Make) -> None:
    """Two rounds by hand: 45 weights, densities √0.2 and 0.2, and what was cut is out for good."""
    model, data = mlp().double(), double(batches)
    mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in methods.prunable(model).items()}
    for keep in (20, 9):
        s = {n: g.abs() for n, g in connection_sensitivity(model, *data[0]).items()}
        alive = torch.cat([s[n][mask[n]] for n in mask])
        mask = {n: m & (s[n] >= alive.topk(keep).values[-1]) for n, m in mask.items()}
        methods.apply_mask(model, mask)
    found = methods.prune(mlp().double(), data, "snip", sparsity=0.8, n_rounds=2)
    assert all(torch.equal(found[n], mask[n]) for n in mask)
    assert flat(methods.prune(mlp().double(), data, "snip", sparsity=0.8)).ne(flat(mask)).any()


def test_the_rounds_of_snip_shrink_densities_by_an_equal_factor() -> None:
    assert criterion("snip").rounds(0.0, 0.9) == (0.9,)
    rounds = criterion("snip", n_rounds=4).rounds(0.5, 0.98)
    assert [1 - s for s in rounds] == pytest.approx([0.5 * 0.04 ** (k / 4) for k in range(1, 5)])


# --- grasp


@dataclass
class Dense:
    """Loss, gradient and Hessian over all prunable weights as one vector."""

    model: nn.Module
    x: Tensor
    y: Tensor
    temperature: float

    def __post_init__(self) -> None:
        self.shapes = {n: w.shape for n, w in methods.prunable(self.model).items()}
        self.w = flat(methods.prunable(self.model))
        self.g = self.gradient(self.w)
        self.h = hessian(self.loss, self.w)

    def split(self, v: Tensor) -> Values:
        pieces = v.split([s.numel() for s in self.shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(self.shapes.items(), pieces, strict=True)}

    def loss(self, v: Tensor) -> Tensor:
        fixed = {n: p.detach() for n, p in self.model.named_parameters()}
        return F.cross_entropy(functional_call(self.model, {**fixed, **self.split(v)}, (self.x,)) / self.temperature, self.y)

    def gradient(self, v: Tensor) -> Tensor:
        v = v.clone().requires_grad_()
        return torch.autograd.grad(self.loss(v), v)[0]

    def flow(self, v: Tensor) -> float:
        return float(self.gradient(v).square().sum())


def first_of_each_class(data: Data, per_class: int) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    rows = sorted(i for c in y.unique() for i in (y == c).nonzero().squeeze(1).tolist()[:per_class])
    return x[rows], y[rows]


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("per_class", [3, 50])
def test_grasp_is_the_weight_times_the_dense_hessian_gradient_product(batches: Data, mlp: Make, temperature: float, per_class: int) -> None:
    model, data = mlp().double(), double(batches)
    dense = Dense(model, *first_of_each_class(data, per_class), temperature)
    found = methods.scores(model, data, "grasp", temperature=temperature, per_class=per_class)
    wanted = dense.w * (dense.h @ dense.g)
    assert torch.allclose(flat(found), wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))
    assert (wanted > 0).any()
    assert (wanted < 0).any()


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_grasp_takes_the_hessian_through_convolutions_and_running_statistics(temperature: float) -> None:
    model, data = seeded(smooth), images(3)
    dense = Dense(model, *first_of_each_class(data, 2), temperature)
    found = methods.scores(model, data, "grasp", temperature=temperature, per_class=2, mode="eval")
    wanted = dense.w * (dense.h @ dense.g)
    assert torch.allclose(flat(found), wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))
    assert ((dense.h.diagonal() * dense.g * dense.w - wanted).abs() > 0.1 * wanted.abs()).any(), "more than the diagonal counts"


def test_grasp_keeps_the_weights_whose_shrinking_would_cost_most_gradient_flow(batches: Data, mlp: Make) -> None:
    """By finite differences of ‖∇L‖²: shrinking w_k changes the flow by -2 w_k (Hg)_k, so the lowest change is the highest score."""
    model, data = mlp().double(), double(batches)
    dense = Dense(model, *first_of_each_class(data, 10), 1.0)
    change = torch.zeros_like(dense.w)
    for k in range(len(change)):
        step = torch.zeros_like(dense.w)
        step[k] = 1e-5 * dense.w[k]
        change[k] = (dense.flow(dense.w - step) - dense.flow(dense.w + step)) / 2e-5
    scores = flat(methods.scores(model, data, "grasp", temperature=1.0, per_class=10))
    assert torch.allclose(change, -2 * scores, rtol=1e-4, atol=1e-9)
    mask = methods.prune(model, data, "grasp", sparsity=0.6, temperature=1.0, per_class=10)
    assert torch.equal(flat(mask), change <= change.kthvalue(18).values)


def test_the_temperature_of_grasp_changes_the_ranking(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    cold, hot = (flat(methods.scores(model, data, "grasp", temperature=t)).argsort() for t in (1.0, 200.0))
    assert not torch.equal(cold, hot)


def test_grasp_needs_class_labels(mlp: Make) -> None:
    with pytest.raises(ValueError, match="integer class labels"):
        methods.scores(mlp(), [(torch.randn(4, 6), torch.randn(4, 3))], "grasp", loss=F.mse_loss)


# --- curvature and obd


def sample_gradients(model: nn.Module, data: Data, loss: Any = F.cross_entropy) -> list[Values]:
    """The gradient of every sample on its own, one backward pass each."""
    out = []
    for x, y in data:
        for i in range(len(y)):
            value = loss(model(x[i : i + 1]), y[i : i + 1])
            gradients = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
            out.append(dict(zip(dict(model.named_parameters()), gradients, strict=True)))
    return out


def squares(gradients: list[Values]) -> Values:
    return {n: torch.stack([g[n] for g in gradients]).square().sum(0) for n in gradients[0]}


class Tied(nn.Module):
    """An embedding whose matrix is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x).sum(1)))


class Alias(nn.Module):
    """One parameter under two names of one module, used by both."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(6))
        self.again = self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale + torch.sin(x * self.again))


def convolutional() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net.double()


def smooth() -> nn.Module:
    """The same with a second derivative, in eval mode."""
    net = convolutional()
    net[2] = nn.Tanh()
    return net.eval()


def images(n: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 2, 6, 6, generator=generator).double(), torch.randint(0, 3, (4,), generator=generator)) for _ in range(n)]


def words(n: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 7, (4, 3), generator=generator), torch.randint(0, 7, (4,), generator=generator)) for _ in range(n)]


def vectors(n: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 6, generator=generator).double(), torch.randint(0, 3, (4,), generator=generator)) for _ in range(n)]


@pytest.mark.parametrize(
    ("make", "data"),
    [
        pytest.param(convolutional, images(3), id="convolutional"),
        pytest.param(lambda: Tied().double(), words(3), id="tied"),
        pytest.param(
            lambda: Alias().double(),
            vectors(3),
            id="alias",
        ),
    ],
)
def test_the_empirical_fisher_is_the_sum_over_samples_one_at_a_time(make: Callable[[], nn.Module], data: Data) -> None:
    model = seeded(make).eval()
    found = curvature(Problem(model, data), "ef")
    assert close(found.diagonal, squares(sample_gradients(model, data)))
    with torch.no_grad():
        assert found.loss == pytest.approx(sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in data))


def test_the_empirical_fisher_takes_any_loss(mlp: Make) -> None:
    model = mlp().double()
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(5, 6, generator=generator).double(), torch.randn(5, 3, generator=generator).double())]
    problem = Problem(model, data, loss=F.mse_loss)
    assert close(curvature(problem, "ef").diagonal, squares(sample_gradients(model, data, F.mse_loss)))
    with pytest.raises(ValueError, match=r"works only with F\.cross_entropy"):
        curvature(problem, "mc")
    with pytest.raises(ValueError, match="curvature 'exact' is not one of ef, mc"):
        curvature(problem, "exact")


def test_obd_is_half_the_mean_squared_gradient_times_the_squared_weight(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    gradients = sample_gradients(model, data)
    found = methods.scores(model, data, "obd", curvature="ef")
    wanted = {n: 0.5 * (squares(gradients)[n] / 64) * w.detach().square() for n, w in methods.prunable(model).items()}
    assert close(found, wanted)
    mean = {n: torch.stack([g[n] for g in gradients]).mean(0) for n in gradients[0]}
    assert not close(found, {n: 0.5 * mean[n].square() * w.detach().square() for n, w in methods.prunable(model).items()}, rtol=0.1)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_obd_does_not_depend_on_the_batch_size(batches: Data, mlp: Make, size: int) -> None:
    x, y = (torch.cat(part) for part in zip(*double(batches), strict=True))
    model = mlp().double()
    again = methods.scores(model, list(zip(x.split(size), y.split(size), strict=True)), "obd", curvature="ef")
    assert close(again, methods.scores(model, double(batches), "obd", curvature="ef"))


def test_curvature_of_fewer_samples_stands_for_all(mlp: Make) -> None:
    """The first whole batches until 256 samples are reached, scaled up to N."""
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(50, 6, generator=generator).double(), torch.randint(0, 3, (50,), generator=generator)) for _ in range(8)]
    model = mlp().double()
    part = curvature(Problem(model, data), "ef", samples=256)
    whole = curvature(Problem(model, data[:6]), "ef")
    assert close(part.diagonal, {n: h * 400 / 300 for n, h in whole.diagonal.items()})
    assert part.loss == pytest.approx(whole.loss * 400 / 300)
    assert close(methods.scores(model, data, "obd", curvature="ef", samples=256), methods.scores(model, data[:6], "obd", curvature="ef"))


def gauss_newton(model: nn.Module, data: Data) -> Values:
    """Σ_n diag(Jᵀ (diag p - p pᵀ) J), with J the dense Jacobian of the logits."""
    parameters = dict(model.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for x in torch.cat([x for x, _ in data]):
        logits = model(x.unsqueeze(0))[0]
        p = logits.detach().softmax(0)
        inner = torch.diag(p) - torch.outer(p, p)
        rows = [torch.autograd.grad(z, list(parameters.values()), retain_graph=True) for z in logits]
        for k, n in enumerate(parameters):
            j = torch.stack([row[k] for row in rows])
            total[n] += torch.einsum("a...,ab,b...->...", j, inner, j)
    return total


def test_monte_carlo_curvature_converges_to_the_exact_gauss_newton_diagonal(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)[:1]
    exact = flat(gauss_newton(model, data))
    draws = torch.stack([flat(curvature(Problem(model, data, seed=seed), "mc").diagonal) for seed in range(400)])
    error = draws.std(0) / 400**0.5
    assert ((draws.mean(0) - exact).abs() / error).max() < 4.5  # 53 normal variables: above it once in 3000 tries
    assert (error / exact).max() < 0.1
    empirical = flat(curvature(Problem(model, data), "ef").diagonal)
    assert ((empirical - exact).abs() / error).max() > 20


OBD = [("mlp", 64), ("convolutional", 12)]


def case(name: str, mlp: Make, batches: Data) -> tuple[nn.Module, Data]:
    return (mlp().double(), double(batches)) if name == "mlp" else (seeded(convolutional).eval(), images(3))


def weighed(model: nn.Module, h: Values, samples: int) -> Values:
    return {n: 0.5 * (h[n] / samples) * w.detach().square() for n, w in methods.prunable(model).items()}


@pytest.mark.parametrize(("name", "samples"), OBD)
def test_obd_of_each_exact_curvature_is_the_dense_one(batches: Data, mlp: Make, name: str, samples: int) -> None:
    model, data = case(name, mlp, batches)
    fisher, ggn = (weighed(model, h, samples) for h in (squares(sample_gradients(model, data)), gauss_newton(model, data)))
    assert close(methods.scores(model, data, "obd", curvature="ef"), fisher)
    assert close(methods.scores(model, data, "obd", curvature="ggn"), ggn)
    assert not close(fisher, ggn, rtol=0.1)


@pytest.mark.parametrize(("name", "samples"), OBD)
def test_obd_of_drawn_labels_converges_to_the_dense_gauss_newton(batches: Data, mlp: Make, name: str, samples: int) -> None:
    model, data = case(name, mlp, batches)
    exact = flat(weighed(model, gauss_newton(model, data), samples))
    one, many = (
        torch.stack([flat(methods.scores(model, data, "obd", curvature="mc", draws=draws, seed=seed)) for seed in range(100)])
        for draws in (1, 16)
    )
    used = exact > 0
    error = many.std(0)[used] / 100**0.5
    assert ((many.mean(0) - exact)[used].abs() / error).max() < 4.5
    assert (error / exact[used]).max() < 0.05
    # Sixteen times the draws, a sixteenth of the variance; the tolerance is that of two variances of 100 draws.
    ratio = (one.var(0)[used] / many.var(0)[used]).log().mean().exp()
    assert 10 < ratio < 26


def test_monte_carlo_labels_depend_on_seed_and_purpose_and_not_on_the_true_labels(batches: Data, mlp: Make) -> None:
    model = mlp()
    one, again, other, later = (
        flat(curvature(Problem(model, data, seed=seed), "mc", purpose=purpose).diagonal)
        for data, seed, purpose in (
            (batches, 0, "a"),
            ([(x, (y + 1) % 3) for x, y in batches], 0, "a"),
            (batches, 1, "a"),
            (batches, 0, "b"),
        )
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, later)


# --- opd


def hand_made(model: nn.Module) -> Posterior:
    generator = torch.Generator().manual_seed(0)
    draw = {n: torch.rand(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}
    prior = {n: d if d.dim() > 1 else torch.tensor(0.7) for n, d in draw.items()}
    return Posterior(prior, 64, temperature=0.5, curvature={n: 3 * d.sqrt() for n, d in draw.items()})


def test_opd_takes_the_precision_that_training_left_and_reads_no_data(mlp: Make) -> None:
    model = mlp().double()
    posterior = hand_made(model)
    wanted = {n: (posterior.curvature[n] + posterior.prior[n]) * w.detach().square() for n, w in methods.prunable(model).items()}

    class Forbidden(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("opd read the data")

    score = criterion("opd").score(Problem(model, Forbidden(), posterior=posterior))
    assert close(score.values, wanted)


def test_opd_fits_the_curvature_beside_a_prior_that_training_left(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    posterior = replace(hand_made(model), curvature={})
    h = squares(sample_gradients(model, data))
    wanted = {n: (h[n] / 0.5 + posterior.prior[n]) * w.detach().square() for n, w in methods.prunable(model).items()}
    assert close(methods.scores(model, data, "opd", posterior=posterior, curvature="ef"), wanted)


def test_opd_after_map_has_weight_decay_times_n_as_its_prior(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    posterior = methods.train(model, data, "map", epochs=2, weight_decay=0.02)
    h = squares(sample_gradients(model, data))
    wanted = {n: (h[n] + 0.02 * 64) * w.detach().square() for n, w in methods.prunable(model).items()}
    assert close(methods.scores(model, data, "opd", posterior=posterior, curvature="ef"), wanted)


def test_opd_without_a_posterior_takes_the_stated_precision(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)
    h = squares(sample_gradients(model, data))
    wanted = {n: (h[n] + 30.0) * w.detach().square() for n, w in methods.prunable(model).items()}
    assert close(methods.scores(model, data, "opd", precision=30.0, curvature="ef"), wanted)


def test_opd_lies_between_magnitude_and_obd(batches: Data, mlp: Make) -> None:
    model, data = mlp().double(), double(batches)

    def ranking(values: Values) -> list[int]:
        return flat(values).argsort().tolist()

    def opd(d: float) -> list[int]:
        prior = {n: torch.tensor(d, dtype=torch.float64) for n, _ in model.named_parameters()}
        return ranking(methods.scores(model, data, "opd", posterior=Posterior(prior, 64), curvature="ef"))

    magnitude, obd = ranking(methods.scores(model)), ranking(methods.scores(model, data, "obd", curvature="ef"))
    assert opd(1e9) == magnitude
    assert opd(1e-9) == obd
    assert opd(5.0) not in (magnitude, obd)
