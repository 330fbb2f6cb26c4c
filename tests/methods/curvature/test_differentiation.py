"""Networks that torch differentiates wrongly or not at all: each against a computation that avoids the fault."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from methods import Problem
from methods.core.differentiation import Repairs, differentiable
from methods.criteria.grasp import Grasp
from methods.criteria.kfac_obs import KfacObs
from methods.criteria.snip import Snip
from methods.criteria.woodfisher import WoodFisher
from methods.curvature import eigen, passes
from methods.curvature.compute import curvature
from methods.curvature.eigen import eigh
from methods.curvature.per_sample import sample_gradients

CLASSES = 3
Values = dict[str, Tensor]
Make = Callable[[], nn.Module]


class Flow(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def build(make: Make) -> nn.Module:
    """In double precision and eval mode, with statistics of norms that are not 0 and 1."""
    torch.manual_seed(0)
    model = make().double().eval()
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d)) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2.0)
    return model


def squares_in_pairs(model: nn.Module, x: Tensor, y: Tensor) -> Values:
    """Name -> Σ_n (∂ℓ_n)²; each sample runs next to a copy of itself, so no batch has one sample. Uses `backward`, not `grad`."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for a, b in zip(x, y, strict=True):
        model.zero_grad()
        inputs = torch.stack([a, a]).requires_grad_()  # a reentrant checkpoint wants an input that requires a gradient
        F.cross_entropy(model(inputs), torch.stack([b, b])).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square()
    model.zero_grad()
    return total


def alike(found: Values, wanted: Values) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[n], h, rtol=1e-8, atol=1e-10 * float(h.max())) for n, h in wanted.items()
    )


def data(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator).double(), torch.randint(CLASSES, (n,), generator=generator)


# --- one sample, tokens after a norm: torch's backward pass of the norm is wrong


def stem(norm: nn.Module) -> Make:
    """Convolution, norm, then tokens: the structure of xcit, levit and other hybrids of convolutions and attention."""

    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = m.norm(m.conv(x)).flatten(2).transpose(1, 2).contiguous()
        return m.head(torch.tanh(m.mix(tokens))).mean(1)

    return lambda: Flow(forward, conv=nn.Conv2d(2, 4, 3, padding=1, bias=False), norm=norm, mix=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_tokens_after_a_norm(norm: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in batches of one, and without vmap where the layers are captured."""
    model, (x, y) = build(stem(NORMS[norm]())), data(5, 2, 3, 4)
    slow: set[str] = set()
    real = passes.add_directly
    monkeypatch.setattr(passes, "add_directly", lambda m, x, c, rest, t: (slow.update(rest), real(m, x, c, rest, t)))
    batches = list(zip(x.split(size), y.split(size), strict=True))
    assert alike(curvature(Problem(model, batches), "ef").diagonal, squares_in_pairs(model, x, y))
    assert slow == (set() if norm == "batch norm" else {"norm.weight", "norm.bias"})


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_of_one_sample_through_a_norm(norm: str) -> None:
    model, (x, y) = build(stem(NORMS[norm]())), data(1, 2, 3, 4)
    wanted = squares_in_pairs(model, x, y)
    with Repairs():
        plain = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert alike({n: g.square() for n, g in zip(wanted, plain, strict=True)}, wanted)
    scores = Snip().score(Problem(model, [(x, y)])).values
    weights = dict(model.named_parameters())
    assert alike({n: (s / weights[n].detach()).square() for n, s in scores.items()}, {n: wanted[n] for n in scores})
    found = dict(sample_gradients(Problem(model, [(x, y)]), list(scores), mini_batch=4))
    assert alike({n: g[0].square() for n, g in found.items()}, {n: wanted[n] for n in scores})


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_through_a_norm_are_those_of_finite_differences(norm: str) -> None:
    """Without autograd: the loss of each sample, alone in its batch, moved along a random direction of the convolution."""
    model, (x, y) = build(stem(NORMS[norm]())), data(3, 2, 3, 4)
    w, step = model.conv.weight, 1e-5
    direction = torch.randn_like(w)

    @torch.no_grad()
    def moved(n: int, by: float) -> float:
        w.add_(by * direction)
        loss = float(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]))
        w.sub_(by * direction)
        return loss

    slopes = [(moved(n, step) - moved(n, -step)) / (2 * step) for n in range(3)]
    ((_, g),) = sample_gradients(Problem(model, [(x, y)]), ["conv.weight"])
    assert (g * direction).flatten(1).sum(1).tolist() == pytest.approx(slopes, rel=1e-6)


# --- networks that vmap does not support


def recurrent(kind: type[nn.RNNBase], **options: Any) -> Make:
    size = 8 if options.get("bidirectional") else 4
    return lambda: Flow(lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=kind(3, 4, batch_first=True, **options), head=nn.Linear(size, CLASSES))


def checkpointed(reentrant: bool, whole: bool) -> Make:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = checkpoint(m.first, x, use_reentrant=reentrant) if whole else m.first(x)
        return m.head(checkpoint(m.second, x, use_reentrant=reentrant))

    def part(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh())

    return lambda: Flow(forward, first=part(12), second=part(5), head=nn.Linear(5, CLASSES))


class Sine(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


def own_function() -> nn.Module:
    """The weight of `first` acts through a function of its own, so it is not captured."""
    return Flow(
        lambda m, x: m.head(Sine.apply(F.linear(x.flatten(1), Sine.apply(m.first.weight)))),
        first=nn.Linear(12, 5, bias=False),
        head=nn.Linear(5, CLASSES),
    )


UNSUPPORTED: dict[str, Make] = {
    "rnn": recurrent(nn.RNN),
    "gru": recurrent(nn.GRU),
    "lstm": recurrent(nn.LSTM),
    "gru in both directions": recurrent(nn.GRU, bidirectional=True, num_layers=2),
    "checkpoint": checkpointed(False, False),
    "checkpoint of all": checkpointed(False, True),
    "reentrant checkpoint": checkpointed(True, False),
    "reentrant checkpoint of all": checkpointed(True, True),
    "own function": own_function,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_any_network_has_curvature_and_scores(name: str) -> None:
    model, (x, y) = build(UNSUPPORTED[name]), data(5, 4, 3)
    problem = Problem(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    wanted = squares_in_pairs(model, x, y)
    assert alike(curvature(problem, "ef").diagonal, wanted)
    names = list(problem.weights)
    total = {n: torch.zeros_like(wanted[n]) for n in names}
    for n, g in sample_gradients(problem, names):
        total[n] += g.square().sum(0)
    assert alike(total, {n: wanted[n] for n in names})
    assert curvature(problem, "ggn", structure="kronecker").blocks.keys() == wanted.keys()
    for criterion in (Snip(), Grasp(), WoodFisher(), KfacObs()):
        with torch.no_grad():  # gradients are switched on inside
            assert all(s.isfinite().all() for s in criterion.score(problem).values.values())


# --- second derivatives


def second(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    return Flow(lambda m, x: m.head(activation(m.first(x.flatten(1)))), first=nn.Linear(12, 8), head=nn.Linear(8, CLASSES))


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x / 6 + 0.5).clamp(0, 1)


PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hardsigmoid": (F.hardsigmoid, hard_sigmoid),
    "module": (nn.Hardsigmoid(), hard_sigmoid),
    "in place": (nn.Hardsigmoid(inplace=True), hard_sigmoid),
    "gate": (lambda x: x * F.hardsigmoid(x), lambda x: x * hard_sigmoid(x)),
    "hardswish": (F.hardswish, lambda x: x * hard_sigmoid(x)),
    "hardswish in place": (nn.Hardswish(inplace=True), lambda x: x * hard_sigmoid(x)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_grasp_differentiates_hard_activations_twice(name: str) -> None:
    x, y = data(9, 4, 3)
    given, same = (Grasp(temperature=1.0).score(Problem(build(lambda a=a: second(a)), [(3 * x, y)])).values for a in PAIRS[name])
    assert given["first.weight"].any()
    assert alike(given, same)


def test_grasp_says_where_a_second_derivative_does_not_exist() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2.0 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2.0 * g

    with pytest.raises(ValueError, match="grasp needs second derivatives, which torch does not have") as error:
        Grasp().score(Problem(build(lambda: second(Once.apply)), [data(6, 4, 3)]))
    assert "\n" not in str(error.value)


def test_grasp_takes_no_samples_with_an_ignored_label() -> None:
    x, y = data(12, 4, 3)
    y[::2] = -100
    model = build(lambda: second(torch.tanh))
    found, wanted = (Grasp(per_class=2).score(Problem(model, [batch])).values for batch in ((x, y), (x[1::2], y[1::2])))
    assert found["first.weight"].any()
    assert all(torch.equal(found[n], s) for n, s in wanted.items())


def test_contexts_that_overlap_leave_checkpoints_as_they_were() -> None:
    """As with two generators of gradients that are read in turn."""
    before = CheckpointFunction.apply
    first, second = (differentiable(nn.Linear(1, 1)) for _ in range(2))
    first.__enter__()
    second.__enter__()
    assert CheckpointFunction.apply(torch.add, True, 1, 2) == 3
    first.__exit__(None, None, None)
    assert CheckpointFunction.apply(torch.add, True, 1, 2) == 3
    second.__exit__(None, None, None)
    assert CheckpointFunction.apply == before


@pytest.mark.parametrize("criterion", [Snip(), Grasp(), WoodFisher(), KfacObs()], ids=lambda c: c.name)
def test_no_batches_is_one_line(criterion: Any) -> None:
    with pytest.raises(ValueError, match="no batches"):
        criterion.score(Problem(build(own_function), []))


# --- eigenvectors where LAPACK fails


@pytest.mark.parametrize("failing", [{torch.float32}, {torch.float32, torch.float64}], ids=["single", "both"])
def test_eigenvectors_without_zero_rows(failing: set[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the input factors of dead units: any failure of LAPACK on the whole matrix is mended."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 7, 20, generator=generator)
    a[0, :, ::2] = 0.0
    a[1] = 0.0
    matrix = a.mT @ a
    real = torch.linalg.eigh

    def failing_eigh(m: Tensor) -> Any:
        if m.dim() == 3 and m.dtype in failing:
            raise torch.linalg.LinAlgError("failed to converge")
        return real(m)

    monkeypatch.setattr(eigen.torch.linalg, "eigh", failing_eigh)
    values, vectors = eigh(matrix)
    assert torch.allclose(vectors @ torch.diag_embed(values) @ vectors.mT, matrix, atol=1e-4)
    assert torch.allclose(vectors.mT @ vectors, torch.eye(20).expand(2, -1, -1), atol=1e-5)
    assert (values.diff() >= 0).all()
    with pytest.raises(ValueError, match="not finite"):
        eigh(matrix * torch.inf)
