"""Second moments of the inputs of layers against unfolded patches."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import Problem
from methods.core.modes import evaluating
from methods.curvature.blocks import Kronecker
from methods.curvature.compute import curvature
from methods.curvature.layer_inputs import Inputs, layer_inputs, unread


class Net(nn.Module):
    """A convolution in groups with stride, dilation and padding; a Linear layer on tokens that is called twice; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        out: Tensor = self.head(torch.tanh(self.mix(torch.tanh(self.mix(tokens)))).mean(1))
        return out


def problem(model: nn.Module | None = None, shape: tuple[int, ...] = (4, 7, 7)) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net() if model is None else model
        x, y = torch.randn(20, *shape).double(), torch.randint(0, 3, (20,))
    return Problem(model.double(), list(zip(x.split(8), y.split(8), strict=True)))


def inputs_of(p: Problem, **options: object) -> dict[str, Inputs]:
    with evaluating(p.model):
        return layer_inputs(p, **options)  # type: ignore[arg-type]


def flattened(inputs: Inputs, matrix: Tensor) -> Tensor:
    """A matrix over the columns of X, over those of the flattened weight."""
    return matrix[:, inputs.columns][:, :, inputs.columns]


def test_they_are_the_second_moments_of_patches_and_tokens() -> None:
    p = problem()
    model = p.model
    assert isinstance(model, Net)
    found = inputs_of(p)
    x = torch.cat([x for x, _ in p.batches])
    groups = [F.unfold(part, 3, dilation=2, padding=2, stride=2).transpose(0, 1).flatten(1) for part in x.split(2, 1)]
    assert torch.allclose(flattened(found["conv.weight"], found["conv.weight"].total), torch.stack([g @ g.T for g in groups]))
    assert found["conv.weight"].count == groups[0].shape[1]
    with torch.no_grad():
        tokens = torch.relu(model.conv(x)).flatten(2).transpose(1, 2)
        both = torch.cat([tokens.flatten(0, 1), torch.tanh(model.mix(tokens)).flatten(0, 1)])
    assert torch.allclose(found["mix.weight"].total[0], both.T @ both)
    assert found["mix.weight"].count == len(both)
    for name, diagonal in inputs_of(p, diagonal=True).items():
        assert torch.allclose(diagonal.total, found[name].total.diagonal(dim1=1, dim2=2))


def test_they_are_the_input_factor_of_the_kronecker_curvature() -> None:
    p = problem()
    found = inputs_of(p)
    with evaluating(p.model):
        blocks = curvature(p, "ef", structure="kronecker", names=list(p.weights)).blocks
    for name, inputs in found.items():
        block = blocks[name]
        assert isinstance(block, Kronecker)
        assert torch.allclose(flattened(inputs, inputs.total / inputs.count), block.inner)


def test_rows_are_the_weight_that_multiplies_the_inputs() -> None:
    p = problem()
    inputs = inputs_of(p)["conv.weight"]
    w = p.weights["conv.weight"].detach()
    assert torch.equal(inputs.weight(inputs.rows(w)), w)
    patches = flattened(inputs, inputs.total)
    wanted = torch.stack([r @ a @ r.T for r, a in zip(w.flatten(1).split(3), patches, strict=True)])
    rows = inputs.rows(w)
    assert torch.allclose(rows @ inputs.total @ rows.mT, wanted)


def test_damping_is_a_multiple_of_the_mean_and_one_without_inputs() -> None:
    inputs = Inputs(torch.diag(torch.tensor([2.0, 4.0])).unsqueeze(0), 2, torch.arange(2), torch.Size((3, 2)))
    assert torch.allclose(inputs.damped(0.1), torch.diag(torch.tensor([1.15, 2.15])).double())
    assert torch.equal(Inputs(torch.zeros(1, 2, 2), 0, torch.arange(2), torch.Size((3, 2))).damped(0.1)[0], torch.eye(2).double())


def test_samples_limit_what_is_read() -> None:
    p = problem()
    assert inputs_of(p, samples=8)["mix.weight"].count == 2 * 8 * 16


def test_an_unused_layer_has_no_inputs() -> None:
    model = Net()
    model.spare = nn.Linear(5, 2)
    assert inputs_of(problem(model))["spare.weight"].count == 0


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.LSTM(4, 3), r"'weight_ih_l0' belongs to the network itself \(LSTM\), and only inputs of Linear and Conv2d layers are read"),
        (nn.ConvTranspose2d(4, 3, 2), "ConvTranspose2d.*leave it out by exclude='weight'"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "is computed from .* call torch.nn.utils.parametrize"),
    ],
)
def test_layers_that_are_not_read_are_refused_by_name(layer: nn.Module, words: str) -> None:
    import re

    reason = unread(Problem(layer, ()))
    assert reason is not None
    assert re.search(words, reason)
    assert "\n" not in reason


def test_a_weight_that_is_also_looked_up_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.words(x).mean(1))
            return out

    x, y = torch.randint(0, 5, (6, 3)), torch.randint(0, 5, (6,))
    with pytest.raises(ValueError, match="is used in a way whose inputs are not known: leave it out by exclude="):
        inputs_of(Problem(Tied(), [(x, y)]))


def test_no_batches_and_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="need training data"):
        inputs_of(Problem(Net(), []))
    p = problem()
    x, y = next(iter(p.batches))
    x = x.clone()
    x[5, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"the inputs of 'conv\.weight' are not finite"):
        inputs_of(Problem(p.model, [(x, y)]))
