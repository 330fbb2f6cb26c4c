"""Losses: which are recognised, which are refused because they are not a mean over samples, and outputs with positions."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import Problem
from methods.criteria.grasp import Grasp
from methods.criteria.snip import Snip
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import cross_entropy_of, half_squared_error
from methods.curvature.per_sample import sample_gradients

CLASSES = 3
Data = list[tuple[Tensor, Tensor]]
Values = dict[str, Tensor]
W = torch.tensor([1.0, 2.0, 4.0])


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def samples(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator).double(), torch.arange(n) % CLASSES


def batches(*sizes: int) -> Data:
    x, y = samples(sum(sizes))
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def alike(found: Values, wanted: Values, rtol: float = 1e-9) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[n], wanted[n], rtol=rtol, atol=1e-14) for n in wanted)


# --- one loss in several forms

SAME: dict[str, Any] = {
    "module": nn.CrossEntropyLoss(),
    "partial": functools.partial(F.cross_entropy, reduction="mean"),
    "ignored label that does not occur": nn.CrossEntropyLoss(ignore_index=7),
}


@pytest.mark.parametrize("kind", ["ef", "mc", "ggn"])
@pytest.mark.parametrize("name", SAME)
def test_forms_of_cross_entropy_are_the_same_loss(name: str, kind: str) -> None:
    model, data = dense(), batches(5, 3)
    found, wanted = (curvature(Problem(model, data, loss), kind) for loss in (SAME[name], F.cross_entropy))
    assert found.loss == wanted.loss
    assert all(torch.equal(found.diagonal[n], wanted.diagonal[n]) for n in wanted.diagonal)


def test_other_losses_are_not_taken_for_cross_entropy() -> None:
    class Own(nn.CrossEntropyLoss):
        def forward(self, f: Tensor, y: Tensor) -> Tensor:
            return 2.0 * super().forward(f, y)

    for loss in (Own(), F.nll_loss, half_squared_error, functools.partial(F.nll_loss), lambda f, y: F.cross_entropy(f, y)):
        assert cross_entropy_of(loss) is None


@pytest.mark.parametrize("kind", ["mc", "ggn"])
def test_smoothing_and_soft_targets_do_not_change_the_hessian_in_the_outputs(kind: str) -> None:
    model, data = dense(), batches(5, 3)
    wanted = curvature(Problem(model, data), kind).diagonal
    smooth = curvature(Problem(model, data, nn.CrossEntropyLoss(label_smoothing=0.2)), kind).diagonal
    soft = curvature(Problem(model, [(x, torch.rand(len(y), CLASSES).double().softmax(1)) for x, y in data]), kind).diagonal
    assert alike(smooth, wanted)
    assert alike(soft, wanted)


def test_the_empirical_fisher_of_smoothed_labels_is_that_of_single_losses() -> None:
    model, (x, y) = dense(), samples(6)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    assert alike(curvature(Problem(model, [(x, y)], loss), "ef").diagonal, squares_of_samples(model, x, y, loss))


def squares_of_samples(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Values:
    """Name -> Σ_n (∂ℓ_n)² by one backward pass for each sample; a loss that is NaN counts as zero."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for n in range(len(y)):
        value = loss(model(x[n : n + 1]), y[n : n + 1])
        if value.isnan():
            continue
        for name, g in zip(total, torch.autograd.grad(value, list(model.parameters())), strict=True):
            total[name] += g.square()
    return total


# --- losses that are not a mean over samples


def weighted(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y, W.to(f))


def typed(f: Tensor, y: Tensor) -> Tensor:
    """Works with outputs of one type only."""
    return F.cross_entropy(f, y, W.double() if f.dtype == torch.float64 else torch.ones(2))


def contrastive(f: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(f, f).mean()


REFUSED: dict[str, tuple[Any, str]] = {
    "class weights": (nn.CrossEntropyLoss(weight=W.double()), "class weights"),
    "class weights of a partial": (functools.partial(F.cross_entropy, weight=W.double()), "class weights"),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), 'reduction="sum"'),
    "none": (nn.CrossEntropyLoss(reduction="none"), 'reduction="none"'),
    "sum of a partial": (functools.partial(F.cross_entropy, reduction="sum"), 'reduction="sum"'),
    "opaque weights": (weighted, "mean of their single losses"),
    "opaque weights of one type": (typed, "mean of their single losses"),
    "opaque sum": (lambda f, y: F.cross_entropy(f, y, reduction="sum"), "divide it by the number of samples"),
    "opaque vector": (lambda f, y: F.cross_entropy(f, y, reduction="none"), "one number"),
    "opaque ignored label": (lambda f, y: F.cross_entropy(f, y, ignore_index=1), "mean of their single losses"),
    "couples the samples": (contrastive, "mean of their single losses"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_that_is_not_a_mean_over_samples_is_refused_everywhere(name: str) -> None:
    loss, words = REFUSED[name]
    problem = Problem(dense(), batches(7, 5), loss)
    names = list(problem.weights)
    calls: dict[str, Callable[[], object]] = {
        "curvature": lambda: curvature(problem, "ef"),
        "samples": lambda: list(sample_gradients(problem, names)),
        "mini-batches": lambda: list(sample_gradients(problem, names, mini_batch=4)),
        "snip": lambda: Snip().score(problem),
        "grasp": lambda: Grasp().score(problem),
    }
    for what, call in calls.items():
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value), what


@pytest.mark.parametrize("remedy", [lambda f, y: (W.to(f)[y] * F.cross_entropy(f, y, reduction="none")).mean(), F.multi_margin_loss])
def test_the_remedy_that_the_message_names_is_accepted(remedy: Any) -> None:
    model, (x, y) = dense(), samples(7)
    assert alike(curvature(Problem(model, [(x, y)], remedy), "ef").diagonal, squares_of_samples(model, x, y, remedy))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(reduction="sum"), functools.partial(F.mse_loss, reduction="sum")])
def test_a_batch_of_one_is_refused_if_a_loss_of_torch_says_that_it_does_not_average(loss: Any) -> None:
    x, _ = samples(1)
    with pytest.raises(ValueError, match='reduction="sum"'):
        curvature(Problem(dense(), [(x, torch.zeros(1, CLASSES).double())], loss), "ef")


def test_a_loss_is_compared_on_the_first_batch_of_more_than_one_sample() -> None:
    with pytest.raises(ValueError, match="mean of their single losses"):
        curvature(Problem(dense(), batches(1, 6), weighted), "ef")


def test_snip_takes_outputs_that_only_the_loss_understands_and_checks_them_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dense()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"f": self.inner(x), "aux": x}

    data = batches(7, 5)
    problem = Problem(Two(), data, lambda f, y: F.cross_entropy(f["f"], y))
    plain = Snip().score(Problem(dense(), data)).values
    assert alike({n.removeprefix("inner."): s for n, s in Snip().score(problem).values.items()}, plain)
    problem.loss = lambda f, y: weighted(f["f"], y)
    with pytest.raises(ValueError, match="mean of their single losses"):
        Snip().score(problem)
    for call in (lambda: curvature(problem, "ef"), lambda: list(sample_gradients(problem, list(problem.weights)))):
        with pytest.raises(ValueError, match="returns a dict, not a tensor: wrap it in a module that returns one tensor"):
            call()


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, Any, str]] = {
    "one class": (lambda f: f[:, :1], torch.zeros(6).long(), F.cross_entropy, "binary_cross_entropy_with_logits"),
    "no classes": (lambda f: f[:, 0], torch.zeros(6).long(), F.cross_entropy, "outputs of shape"),
    "time first": (lambda f: f.T, torch.zeros(6).long(), F.cross_entropy, "first dimension must be the samples"),
    "labels of another shape": (lambda f: f, torch.zeros(6, 2).long(), F.cross_entropy, "needs targets of shape"),
    "soft targets that do not sum to one": (lambda f: f, torch.ones(6, CLASSES).double(), F.cross_entropy, "sum to one"),
    "targets without the output dimension": (lambda f: f[:, :1], torch.zeros(6).double(), half_squared_error, "same shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_outputs_and_targets_that_do_not_fit_are_refused(name: str) -> None:
    change, y, loss, words = FAULTS[name]

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dense()

        def forward(self, x: Tensor) -> Tensor:
            return change(self.inner(x))

    with pytest.raises(ValueError, match=words):
        curvature(Problem(Changed(), [(samples(6)[0], y)], loss), "mc")


# --- outputs with positions


def pixels(n: int = 5, ignored: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with an output for each of 2x3 pixels; one sample has no label, others lack some."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, CLASSES, 1)).double()
    x, y = torch.randn(n, 2, 2, 3).double(), torch.randint(CLASSES, (n, 2, 3))
    if ignored:
        y[0, 0, :2] = y[1, 1] = y[2] = -100
    return model, x, y


def dense_ggn(model: nn.Module, x: Tensor, y: Tensor) -> Values:
    """Σ_n diag(Jᵀ H J), H = ∂²ℓ_n/∂f² by double differentiation of the mean over the positions that are not ignored."""
    parameters = dict(model.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for n in range(len(x)):
        if bool((y[n] == -100).all()):
            continue
        f = model(x[n : n + 1])
        hessian = torch.autograd.functional.hessian(lambda z, n=n: F.cross_entropy(z, y[n : n + 1]), f.detach())
        hessian = hessian.reshape(f.numel(), f.numel())
        rows = [torch.autograd.grad(v, list(parameters.values()), retain_graph=True) for v in f.flatten()]
        for k, name in enumerate(parameters):
            j = torch.stack([row[k] for row in rows])
            total[name] += torch.einsum("a...,ab,b...->...", j, hessian, j)
    return total


@pytest.mark.parametrize("ignored", [False, True])
def test_curvature_of_positions_is_that_of_single_samples(ignored: bool) -> None:
    model, x, y = pixels(ignored=ignored)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss()):
        problem = Problem(model, [(x, y)], loss)
        assert alike(curvature(problem, "ef").diagonal, squares_of_samples(model, x, y, F.cross_entropy))
        assert alike(curvature(problem, "ggn").diagonal, dense_ggn(model, x, y))


@pytest.mark.parametrize("kind", ["ef", "ggn"])
def test_curvature_does_not_depend_on_how_samples_fall_into_batches(kind: str) -> None:
    model, x, y = pixels()
    whole, parts = (
        curvature(Problem(model, list(zip(x.split(size), y.split(size), strict=True))), kind, structure="kronecker") for size in (5, 2)
    )
    assert whole.loss == pytest.approx(parts.loss)
    assert alike(whole.diagonal, parts.diagonal)
    single = [float(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]).detach()) for n in range(5) if n != 2]
    assert whole.loss == pytest.approx(sum(single))


def test_snip_and_mini_batches_do_not_depend_on_how_ignored_labels_fall_into_batches() -> None:
    model, x, y = pixels()
    means = [F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]) for n in range(5) if n != 2]
    names = [n for n, _ in model.named_parameters() if n.endswith("weight")]
    weights = [dict(model.named_parameters())[n] for n in names]
    wanted = dict(zip(names, torch.autograd.grad(torch.stack(means).sum() / 5, weights), strict=True))
    for size in (5, 2):
        problem = Problem(model, list(zip(x.split(size), y.split(size), strict=True)))
        scores = Snip(n_batches=5).score(problem).values
        assert alike(scores, {n: (g * w).abs() for (n, g), w in zip(wanted.items(), weights, strict=True)})
        ((_, g), *_) = sample_gradients(problem, names[:1], mini_batch=5)
        assert torch.allclose(g[0], wanted[names[0]])


@pytest.mark.parametrize("kind", ["ef", "mc", "ggn"])
def test_samples_with_an_ignored_label_contribute_nothing(kind: str) -> None:
    """The same generator draws for the samples that are left, as they come first."""
    model, (x, y) = dense(), samples(6)
    found = curvature(Problem(model, [(x, torch.cat([y[:4], torch.tensor([-100, -100])]))]), kind)
    wanted = curvature(Problem(model, [(x[:4], y[:4])]), kind)
    assert found.loss == pytest.approx(wanted.loss)
    assert alike(found.diagonal, wanted.diagonal)


def test_monte_carlo_over_positions_is_unbiased() -> None:
    model, x, y = pixels()
    wanted = dense_ggn(model, x, y)
    for draws in (1, 4000):
        found = curvature(Problem(model, [(x, y)]), "mc", draws=draws).diagonal
        error = max(float(((found[n] - wanted[n]).abs() / wanted[n].max()).max()) for n in wanted)
        assert (error > 0.1) == (draws == 1)
        assert error < 0.06 or draws == 1


def test_sequences_with_soft_targets_and_regression_maps() -> None:
    model, x, _ = pixels(4, ignored=False)
    soft = torch.rand(4, CLASSES, 2, 3).double().softmax(1)
    assert alike(curvature(Problem(model, [(x, soft)]), "ef").diagonal, squares_of_samples(model, x, soft, F.cross_entropy))
    assert alike(curvature(Problem(model, [(x, soft)]), "ggn").diagonal, dense_ggn(model, x, torch.zeros(4, 2, 3).long()))
    targets = torch.randn(4, CLASSES, 2, 3).double()
    found = curvature(Problem(model, [(x, targets)], half_squared_error), "ggn").diagonal
    rows = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in model(x).flatten()]
    wanted = {n: torch.stack([row[k] for row in rows]).square().sum(0) for k, (n, _) in enumerate(model.named_parameters())}
    assert alike(found, wanted)


def test_too_many_columns_are_refused() -> None:
    model = nn.Conv2d(1, CLASSES, 1)
    problem = Problem(model, [(torch.randn(1, 1, 64, 64), torch.zeros(1, 64, 64).long())])
    with pytest.raises(ValueError, match="8192 backward passes"):
        curvature(problem, "ggn")
