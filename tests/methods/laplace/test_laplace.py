"""Our curvature and priors in laplace-torch, against laplace-torch's own backends and dense matrices."""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

import methods
from methods.core.interface import Posterior, Problem
from methods.curvature.blocks import MAX_EXACT, Diagonal, Kronecker, Separable
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import half_squared_error

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from laplace import DiagLaplace, KronLaplace, Laplace, marglik_training
    from laplace.curvature import CurvlinopsEF, CurvlinopsGGN
    from laplace.utils import Kron

    from methods.curvature import blocks
    from methods.laplace import Backend, BlockLaplace, Factors, from_posterior

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Attention(nn.Module):
    """A very small vision transformer: a class token, positions, a norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))
        self.norm, self.attention, self.head = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2).transpose(1, 2)
        q = self.norm(torch.cat([self.token.expand(len(t), -1, -1), t], 1) + self.positions)
        return self.head((q + self.attention(q, q, q, need_weights=False)[0])[:, 0])


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))


def normed() -> nn.Module:
    """Its factors have full rank on enough data, up to one dimension of the head: the eigenbasis, and a projection, is unique."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.5),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net


def data(make: Callable[[], nn.Module], outputs: int = 0, n: int = 12, size: int = 5) -> DataLoader:
    """Batches of 5, 5 and 2 samples."""
    x = torch.randn(n, 6) if make is plain else torch.randn(n, 1, 8, 8)
    y = torch.randn(n, outputs).double() if outputs else torch.randint(0, 3, (n,))
    return DataLoader(TensorDataset(x.double(), y), batch_size=size)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(outputs, parameters) of one sample, by autograd."""
    f = model(x.unsqueeze(0))[0]
    rows = [torch.autograd.grad(z, list(model.parameters()), retain_graph=True) for z in f]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def gauss_newton(model: nn.Module, loader: DataLoader, kind: str = "ggn") -> Tensor:
    """Dense Σ_n Jᵀ V Vᵀ J of all parameters, with V Vᵀ written out."""
    total = torch.zeros(1)
    for x, y in loader.dataset:
        j, f = jacobian(model, x), model(x.unsqueeze(0))[0].detach()
        p = f.softmax(0)
        if y.dim():
            inner = torch.eye(len(f)).double() if kind == "ggn" else torch.outer(f - y, f - y)
        else:
            g = p - F.one_hot(y, len(p))
            inner = torch.diag(p) - torch.outer(p, p) if kind == "ggn" else torch.outer(g, g)
        total = total + j.T @ inner @ j
    return total


def same(a: Tensor, b: Tensor, rtol: float = 1e-8) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


def fitted(cls: Any, make: Callable[[], nn.Module], outputs: int = 0, **options: Any) -> Any:
    """(the fitted approximation, its data)."""
    model, loader = make().double(), data(make, outputs)
    la = cls(model, "regression" if outputs else "classification", **{"backend": Backend, **options})
    la.fit(loader)
    return la, loader


# --- the backend


def test_methods_does_not_import_laplace_torch() -> None:
    code = "import sys, methods; sys.exit('laplace' in sys.modules or 'methods.laplace' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("outputs", [0, 3], ids=["classification", "regression"])
@pytest.mark.parametrize("kind", ["ggn", "ef"])
@pytest.mark.parametrize("make", [plain, convolutional, normed, Attention])
def test_the_diagonal_is_that_of_the_dense_matrix(make: Callable[[], nn.Module], kind: str, outputs: int) -> None:
    la, loader = fitted(DiagLaplace, make, outputs, backend_kwargs={"kind": kind})
    assert same(la.H, gauss_newton(la.model, loader, kind).diagonal())
    x, y = loader.dataset.tensors
    f = la.model(x).detach()
    loss = 0.5 * (f - y).square().sum() if outputs else F.cross_entropy(f, y, reduction="sum")
    assert float(la.loss) == pytest.approx(float(loss))


@pytest.mark.parametrize("outputs", [0, 3], ids=["classification", "regression"])
@pytest.mark.parametrize("make", [plain, convolutional])
@pytest.mark.parametrize(("kind", "theirs"), [("ggn", CurvlinopsGGN), ("ef", CurvlinopsEF)])
def test_the_curvature_is_that_of_laplace_torchs_own_backends(make: Any, kind: str, theirs: Any, outputs: int) -> None:
    """But for the bias of a convolution, where theirs sums over positions and ours is the exact block."""
    model, loader = make().double(), data(make, outputs)
    likelihood = "regression" if outputs else "classification"
    # Under regression laplace-torch's empirical Fisher has squares of 2(f - y), halved once: twice those of N(y; f, 1).
    factor = 2 if outputs and kind == "ef" else 1
    exact = gauss_newton(model, loader, kind)
    for cls in (DiagLaplace, KronLaplace, BlockLaplace):
        ours = cls(model, likelihood, backend=Backend, backend_kwargs={"kind": kind})
        other = cls(model, likelihood, backend=theirs)
        for la in (ours, other):
            la.fit(loader)
        if cls is DiagLaplace:
            assert same(ours.H * factor, other.H)
        else:
            start = 0
            for p, a, b in zip(ours.params, ours.H_facs.kfacs, other.H_facs.kfacs, strict=True):
                if p.dim() > 1 or make is plain:
                    assert same(Kron([a]).to_matrix() * factor, Kron([b]).to_matrix())
                if p.dim() == 1:
                    assert same(a[0], exact[start : start + len(p), start : start + len(p)])
                start += p.numel()
        if make is plain and factor == 1:
            assert float(ours.log_marginal_likelihood()) == pytest.approx(float(other.log_marginal_likelihood()))


def test_reduced_factors_are_those_of_curvlinops() -> None:
    model, loader = convolutional().double(), data(convolutional)
    x, y = loader.dataset.tensors
    _, ours = Backend(model, "classification", sharing="reduce").kron(x, y, 12)
    _, theirs = CurvlinopsGGN(model, "classification").kron(x, y, 12, kfac_approx="reduce")
    assert same(ours.to_matrix(), theirs.to_matrix())


@pytest.mark.parametrize("outputs", [0, 2], ids=["classification", "regression"])
def test_monte_carlo_draws_anew_for_each_batch_and_converges(outputs: int) -> None:
    make: Callable[[], nn.Module] = lambda: nn.Linear(6, outputs or 3)  # noqa: E731
    model, loader = make().double(), data(plain, outputs)
    likelihood = "regression" if outputs else "classification"
    la = DiagLaplace(model, likelihood, backend=Backend, backend_kwargs={"kind": "mc", "draws": 2_000})
    la.fit(loader)
    assert same(la.H, gauss_newton(model, loader).diagonal(), rtol=0.05)
    backend = Backend(model, likelihood, kind="mc")
    first, second = (backend.diag(*loader.dataset.tensors)[1] for _ in range(2))
    assert not same(first, second)
    assert torch.equal(first, Backend(model, likelihood, kind="mc").diag(*loader.dataset.tensors)[1])


def test_the_dense_matrix_is_the_gauss_newton_matrix() -> None:
    la, loader = fitted(Laplace, plain, subset_of_weights="all", hessian_structure="full")
    assert same(la.H, gauss_newton(la.model, loader))


def test_half_the_squared_error_needs_targets_of_the_outputs_shape() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        half_squared_error(torch.zeros(4, 1), torch.zeros(4))
    problem = Problem(plain().double(), [tuple(data(plain, 3).dataset.tensors)], loss=half_squared_error)
    assert curvature(problem, "ggn").loss == pytest.approx(curvature(problem, "ef").loss)


def test_last_layers_and_subnetworks() -> None:
    whole, loader = fitted(DiagLaplace, plain)
    for structure in ("diag", "kron"):
        la = Laplace(whole.model, "classification", subset_of_weights="last_layer", hessian_structure=structure, backend=Backend)
        la.fit(loader)
        own = Laplace(whole.model, "classification", subset_of_weights="last_layer", hessian_structure=structure)
        own.fit(loader)
        assert float(la.log_marginal_likelihood()) == pytest.approx(float(own.log_marginal_likelihood()))
        assert la(loader.dataset.tensors[0]).isfinite().all()
    indices = torch.tensor([0, 7, 40])
    la = Laplace(whole.model, "classification", "subnetwork", "diag", subnetwork_indices=indices, backend=Backend)
    la.fit(loader)
    assert same(la.H, whole.H[indices])
    assert la(loader.dataset.tensors[0]).isfinite().all()


def test_frozen_parameters_take_no_part() -> None:
    model, loader = plain().double(), data(plain)
    model[0].weight.requires_grad_(False)
    la = DiagLaplace(model, "classification", backend=Backend)
    la.fit(loader)
    model[0].weight.requires_grad_(True)
    assert same(la.H, gauss_newton(model, loader).diagonal()[30:])


def test_what_the_backend_refuses() -> None:
    loader = data(normed)
    la = KronLaplace(normed().double(), "classification", backend=Backend)
    with pytest.raises(NotImplementedError, match=r"cannot represent the curvature of '3.weight': use methods.laplace.BlockLaplace"):
        la.fit(loader)
    x, y = loader.dataset.tensors
    with pytest.raises(NotImplementedError, match="tensors, not mappings"):
        Backend(normed(), "classification").diag({"x": x}, y)
    with pytest.raises(NotImplementedError, match="dense empirical Fisher is not available"):
        Backend(normed(), "classification", kind="ef").full(x, y)


class Tokens(nn.Module):
    """Positions and a norm layer between two products: what `KronLaplace` itself has a place for."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(1, 3, 4, stride=4), nn.Parameter(torch.randn(1, 4, 3))
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.patches(x).flatten(2).mT + self.positions).tanh().mean(1))


@pytest.mark.parametrize("prior", [0.3, torch.tensor([0.1, 3.0, 0.5, 7.0, 0.2, 1.0, 4.0])], ids=["scalar", "layer"])
def test_kron_laplace_takes_norm_layers_and_tokens(prior: Any) -> None:
    model, loader = Tokens().double(), data(Tokens)
    theirs, ours = (c(model, "classification", prior_precision=prior, backend=Backend) for c in (KronLaplace, BlockLaplace))
    for la in (theirs, ours):
        la.fit(loader)
    x = loader.dataset.tensors[0]
    assert same(ours.posterior_precision.to_matrix(), theirs.posterior_precision.to_matrix())
    assert same(ours.posterior_precision.to_matrix(-1), theirs.posterior_precision.to_matrix(-1))
    for exponent in (1, -1):
        assert same(ours.posterior_precision.diag(exponent), theirs.posterior_precision.diag(exponent))
    for value in ("log_det_ratio", "log_det_posterior_precision", "scatter"):
        assert float(getattr(ours, value)) == pytest.approx(float(getattr(theirs, value)))
    assert float(ours.log_prob(theirs.mean + 0.1)) == pytest.approx(float(theirs.log_prob(theirs.mean + 0.1)))
    assert same(ours(x), theirs(x))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert same(ours.sample(3, generators[0]), theirs.sample(3, generators[1]))


def test_online_training_and_prior_optimisation_of_laplace_torch() -> None:
    la, loader = fitted(DiagLaplace, plain)
    before = float(la.log_marginal_likelihood())
    la.optimize_prior_precision(method="marglik", n_steps=30, prior_structure="layerwise")
    assert float(la.log_marginal_likelihood()) > before
    _, _, margliks, _ = marglik_training(plain().double(), loader, hessian_structure="kron", backend=Backend, n_epochs=2, n_hypersteps=2)
    assert all(map(math.isfinite, margliks))


# --- every layer, every prior

NETWORKS = [plain, normed, Attention]
KINDS = ["scalar", "layer", "unit", "parameter"]


def a_prior(la: BlockLaplace, kind: str) -> Tensor:
    size = {"scalar": 1, "layer": la.n_layers, "unit": la.n_units, "parameter": la.n_params}[kind]
    return torch.randn(size).double().exp()


def dense_curvature(la: BlockLaplace) -> Tensor:
    """H from the factors as laplace-torch's own class has them: G entries for G groups."""
    matrix: Tensor = Kron(la.H_facs.kfacs).to_matrix()
    return matrix


def test_the_curvature_of_every_layer_is_a_block_of_the_dense_matrix() -> None:
    """Exact where no position shares a weight and no two samples are averaged: one sample, linear layers; diagonals always."""
    la, loader = fitted(BlockLaplace, normed)
    exact, found = gauss_newton(la.model, loader), dense_curvature(la)
    sizes = [p.numel() for p in la.params]
    assert [len(entry) for entry in la.H_facs.kfacs] == [2, 1, 1, 1, 2, 2, 1, 2, 1]
    for k, (a, b) in enumerate(zip(exact.diagonal().split(sizes), found.diagonal().split(sizes), strict=True)):
        if k in (1, 2, 3, 5, 7):  # biases and the norm layer
            assert same(b, a)
    model, one = nn.Linear(6, 3).double(), data(plain, n=1)
    la = BlockLaplace(model, "classification")
    la.fit(one)
    blocks = [block[:, :].clone() for block in (gauss_newton(model, one)[:18, :18], gauss_newton(model, one)[18:, 18:])]
    assert same(dense_curvature(la), torch.block_diag(*blocks))


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_marginal_likelihood_is_that_of_dense_matrices(make: Callable[[], nn.Module], kind: str) -> None:
    la, _ = fitted(BlockLaplace, make, temperature=0.5)
    value = float(la.log_marginal_likelihood(a_prior(la, kind)))
    d = la.prior_precision_diag
    log_prior = MultivariateNormal(torch.zeros_like(d), precision_matrix=d.diag()).log_prob(la.mean)
    precision = dense_curvature(la) / 0.5 + d.diag()
    dense = float(-la.loss / 0.5 + log_prior + 0.5 * len(d) * math.log(2 * math.pi) - 0.5 * torch.logdet(precision))
    if kind == "parameter":
        assert dense - 0.5 * len(d) < value < dense - 1e-3  # projected: by Hadamard never above
    else:
        assert value == pytest.approx(dense)
        assert same(la.posterior_precision.to_matrix(), precision)
    covariance = la.posterior_precision.to_matrix(-1)
    assert same(covariance @ la.posterior_precision.to_matrix(), torch.eye(len(d)).double())
    assert same(la.posterior_precision.diag(-1), covariance.diagonal())
    assert float(la.posterior_precision.logdet()) == pytest.approx(float(la.log_det_posterior_precision))


def test_the_projected_precision_keeps_the_diagonal_in_the_eigenbasis() -> None:
    la, _ = fitted(BlockLaplace, plain)
    la.prior_precision = a_prior(la, "parameter")
    block, prior = la.H[0], la.prior_precision[:30]
    _, qb, qa = block.eigen
    q = torch.kron(qb[0], qa[0])
    kept = (q.T @ torch.diag(prior) @ q).diagonal()
    wanted = torch.kron(block.outer[0], block.inner[0]) + q @ torch.diag(kept) @ q.T
    assert same(la.posterior_precision.to_matrix()[:30, :30], wanted)


def test_a_unit_wise_prior_over_large_factors_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    la, _ = fitted(BlockLaplace, plain)
    prior = a_prior(la, "unit")
    exact = float(la.log_marginal_likelihood(prior))
    dense = la.prior_precision_diag
    assert MAX_EXACT >= 6
    monkeypatch.setattr(blocks, "MAX_EXACT", 0)
    projected = float(la.log_marginal_likelihood(prior))
    assert projected < exact
    assert projected == pytest.approx(float(la.log_marginal_likelihood(dense)))


def test_the_units_of_a_prior_are_rows_and_columns_of_each_group() -> None:
    la, _ = fitted(BlockLaplace, normed)
    assert la.n_units == (4 + 1) + 4 + 4 + 4 + (4 + 2 * 2) + 4 + (3 + 16) + 3
    prior = torch.arange(1.0, la.n_units + 1).double()
    la.prior_precision = prior
    start = 36 + 4 + 4 + 4  # before the grouped weight (4, 2, 2, 2): units 17..20 are its outputs, 21..24 its inputs
    weight = la.prior_precision_diag[start : start + 32].view(4, 2, 4)
    u, v = prior[17:21], prior[21:25].view(2, 2)
    assert same(weight, u.view(4, 1, 1) * v.repeat_interleave(2, 0).unsqueeze(2).expand(4, 2, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_marginal_likelihood_is_differentiable_in_every_prior(kind: str) -> None:
    model, loader = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 3)).double(), data(plain, 3, n=4)  # A has rank 4 of 6
    la = BlockLaplace(model, "regression")
    la.fit(loader)
    prior = a_prior(la, kind).log().requires_grad_()
    sigma = torch.tensor(0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, s: la.log_marginal_likelihood(u.exp(), s.exp()), (prior, sigma))


@pytest.mark.parametrize("kind", KINDS)
def test_laplace_torchs_optimiser_raises_the_marginal_likelihood(kind: str) -> None:
    la, _ = fitted(BlockLaplace, Attention)
    start = torch.ones_like(a_prior(la, kind))
    before = float(la.log_marginal_likelihood(start))
    la.optimize_prior_precision(method="marglik", init_prior_prec=start, prior_structure="scalar", n_steps=10)
    assert len(la.prior_precision) == len(start)
    assert float(la.log_marginal_likelihood()) > before + 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_posterior_covariance(kind: str) -> None:
    model, loader = nn.Linear(6, 2).double(), data(plain, 2)
    la = BlockLaplace(model, "regression")
    la.fit(loader)
    la.prior_precision = a_prior(la, kind)
    draws = la.sample(200_000, torch.Generator().manual_seed(0))
    covariance = la.posterior_precision.to_matrix(-1)
    assert (draws.mean(0) - la.mean).abs().max() < 0.01
    assert same(draws.T.cov(), covariance, rtol=0.02)


@pytest.mark.parametrize("outputs", [0, 3], ids=["classification", "regression"])
@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("kind", ["scalar", "unit", "parameter"])
def test_predictive_distributions(make: Callable[[], nn.Module], kind: str, outputs: int) -> None:
    la, loader = fitted(BlockLaplace, make, outputs)
    la.prior_precision = a_prior(la, kind)
    x = loader.dataset.tensors[0][:3]
    j = torch.stack([jacobian(la.model, v) for v in x])
    variance = j @ la.posterior_precision.to_matrix(-1) @ j.mT
    if outputs:
        mean, found = la(x)
        assert same(mean, la.model(x).detach())
        assert same(found, variance)
        assert same(la(x, joint=True)[1].view(3, 3, 3, 3)[1, :, 1], variance[1])
        assert la.predictive_samples(x, pred_type="nn", n_samples=5).isfinite().all()
        return
    for approximation in ("probit", "mc", "bridge"):
        p = la(x, link_approx=approximation)
        assert p.isfinite().all()
        assert same(p.sum(1), torch.ones(3).double())
    assert la(x, pred_type="nn", link_approx="mc", n_samples=5).isfinite().all()
    assert same(la.functional_variance(j), variance)


def test_a_fit_in_two_parts_is_one_fit() -> None:
    whole, loader = fitted(BlockLaplace, normed)
    x, y = loader.dataset.tensors
    la = BlockLaplace(whole.model, "classification")
    for part in (slice(0, 7), slice(7, 12)):
        la.fit(DataLoader(TensorDataset(x[part], y[part]), batch_size=3), override=False)
    assert same(dense_curvature(la), dense_curvature(whole))
    assert float(la.log_marginal_likelihood()) == pytest.approx(float(whole.log_marginal_likelihood()))


def test_factors_that_would_broadcast_are_not_added() -> None:
    total = Factors([], [torch.Size([2])]) + Kron([[torch.ones(2, 2)]])
    with pytest.raises(ValueError, match="must have the same shape"):
        total += Kron([[torch.ones(2)]])


def test_a_state_is_saved_and_loaded() -> None:
    la, _ = fitted(BlockLaplace, normed)
    la.prior_precision = a_prior(la, "unit")
    again = BlockLaplace(la.model, "classification")
    again.load_state_dict(la.state_dict())
    assert float(again.log_marginal_likelihood()) == float(la.log_marginal_likelihood())


def test_laplace_torch_finds_the_class_by_name_and_keeps_its_own() -> None:
    model = plain()
    assert type(Laplace(model, "classification", "all", "block")) is BlockLaplace
    assert type(Laplace(model, "classification", "all", "kron")) is KronLaplace


def test_what_block_laplace_refuses() -> None:
    la, loader = fitted(BlockLaplace, plain)
    with pytest.raises(ValueError, match=r"must have length 1, 4, 53 or 27 .*, not 7"):
        la.log_marginal_likelihood(torch.ones(7))
    with pytest.raises(ValueError, match="2 dimensions"):
        la.prior_precision = torch.ones(2, 2)
    with pytest.raises(ValueError, match="no damping"):
        BlockLaplace(la.model, "classification", damping=True)
    la.prior_precision = 1.0
    with pytest.raises(ValueError, match=r"exponent 0\.5"):
        la.posterior_precision.bmm(la.mean, 0.5)
    with pytest.raises(AttributeError, match="not fitted"):
        BlockLaplace(la.model, "classification").log_marginal_likelihood()
    la = BlockLaplace(la.model, "classification", prior_precision=torch.ones(7))
    with pytest.raises(ValueError, match=r"must have length .*, not 7"):
        la.fit(loader)


# --- the algebra


def test_the_precision_of_a_block_is_that_of_its_evidence() -> None:
    """log det P - Σ log d is the complexity and 1 - d (P⁻¹)_kk is γ, under every prior; R Rᵀ = P."""
    b, a = (torch.randn(2, n, 2 * n).double() for n in (3, 4))
    shape = torch.Size((6, 4))
    h = torch.rand(shape).double()
    separable = Separable(torch.randn(2, 3, 1).double(), torch.randn(2, 1, 4).double())
    for block in (Kronecker(b @ b.mT, a @ a.mT, shape), Diagonal(h)):
        own = separable if isinstance(block, Kronecker) else Separable(separable.rows.view(1, 6, 1), separable.columns[:1])
        for d in (torch.tensor(0.7).double(), torch.rand(shape).double() + 0.1, own):
            p, found = block.precision(d), block.evidence(d)
            dense = (d.dense(shape) if isinstance(d, Separable) else d.expand(shape)).flatten()
            assert float(p.log_det() - dense.log().sum()) == pytest.approx(float(found.complexity))
            assert same(1 - dense * p.inverse().diagonal(), found.determined.flatten())
            matrix, root = p.times(torch.eye(24).double()), p.root(torch.eye(24).double())
            assert same(root.T @ root, matrix)
            assert same(p.diagonal(), matrix.diagonal())


# --- from training


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("prior", ["scalar", "layer", "unit", "parameter"])
def test_from_posterior_is_a_fresh_fit(structure: str, prior: str) -> None:
    model, loader = normed().double(), data(normed, n=60, size=20)
    batches = list(loader)
    options = {
        "prior": prior,
        "structure": structure,
        "curvature": "ggn",
        "temperature": 0.5,
        "frequency": 1,
        "share": 1.0,
        "memory": 0.0,
        "lr": 0.05,
    }
    posterior = methods.train(model, batches, training="spam", epochs=2, burn_in=0.0, **options)
    la = from_posterior(model, posterior)
    assert isinstance(la, DiagLaplace if structure == "diagonal" else BlockLaplace)
    fresh = type(la)(model, "classification", prior_precision=la.prior_precision, temperature=0.5, backend=Backend)
    fresh.fit(loader)
    x = batches[0][0]
    assert torch.isfinite(la(x)).all()
    if structure == "kronecker" and prior == "unit":  # SpaM's is exact, a prior for each parameter is projected: never above
        assert float(la.log_marginal_likelihood()) <= posterior.marginal_likelihood[-1] + 1e-9
    else:
        assert float(la.log_marginal_likelihood()) == pytest.approx(posterior.marginal_likelihood[-1])
        assert float(fresh.log_marginal_likelihood()) == pytest.approx(posterior.marginal_likelihood[-1])
        assert same(la(x), fresh(x))
    d = torch.cat([posterior.prior[n].expand(p.shape).flatten() for n, p in model.named_parameters()])
    assert same(la.prior_precision_diag, d)


def test_from_posterior_of_a_regression() -> None:
    model, loader = plain().double(), data(plain, 3, n=60)
    options = {"structure": "kronecker", "curvature": "ggn", "prior": "layer", "burn_in": 0.0, "lr": 0.01}
    posterior = methods.train(model, list(loader), training="spam", epochs=2, loss=half_squared_error, **options)
    la, fresh = from_posterior(model, posterior, "regression", 3), BlockLaplace(model, "regression")
    fresh.fit(loader)
    assert float(la.log_marginal_likelihood()) == pytest.approx(float(fresh.log_marginal_likelihood(la.prior_precision)))


def test_from_posterior_without_curvature_or_loss() -> None:
    model = plain()
    with pytest.raises(ValueError, match=r"no curvature of '0.weight'"):
        from_posterior(model, Posterior({n: torch.tensor(1.0) for n, _ in model.named_parameters()}, 12))
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    la = from_posterior(model, Posterior({n: torch.tensor(2.0) for n in ones}, 12, curvature=ones))
    assert math.isnan(float(la.log_marginal_likelihood()))
    assert same(la.posterior_precision, torch.full((53,), 3.0))
    assert la.prior_precision.tolist() == [2.0]
