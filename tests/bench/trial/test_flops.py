"""FLOPs of linear and convolutional layers against counts by hand, and which weight a product belongs to."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

from bench.trial import cost
from bench.trial.flops import layer_flops
from methods import full_mask
from tests.bench.handcounts import Forward, Net

# --- linear and convolutional layers


def test_a_linear_layer_counts_every_leading_dimension() -> None:
    for shape in ((6,), (3, 6), (2, 3, 6)):
        for bias in (True, False):
            flops = 2 * prod(shape) * 4
            assert layer_flops(nn.Linear(6, 4, bias=bias), shape) == (flops, {"weight": flops})
            assert layer_flops(nn.Sequential(nn.Linear(6, 4, bias=bias)), shape) == (flops, {"0.weight": flops})


# (layer, input, multiply-adds): places that the kernel visits x outputs x inputs of a group x size of the kernel
CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 8, 5), (3, 20), 16 * 8 * 3 * 5),
    "2d": (nn.Conv2d(3, 8, (3, 5)), (3, 9, 11), (7 * 7) * 8 * 3 * 15),
    "3d": (nn.Conv3d(2, 4, 3), (2, 5, 6, 7), (3 * 4 * 5) * 4 * 2 * 27),
    "no bias": (nn.Conv2d(3, 8, 3, bias=False), (3, 9, 11), (7 * 9) * 8 * 3 * 9),
    "padded": (nn.Conv2d(3, 8, 3, padding=2), (3, 9, 11), (11 * 13) * 8 * 3 * 9),
    "padded to the same size": (nn.Conv2d(3, 8, 3, padding="same", dilation=2), (3, 9, 11), (9 * 11) * 8 * 3 * 9),
    "padded in a circle": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (3, 9, 11), (9 * 11) * 8 * 3 * 9),
    "strided": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 9, 11), (5 * 6) * 8 * 3 * 9),
    "dilated": (nn.Conv2d(3, 8, 3, dilation=3), (3, 9, 11), (3 * 5) * 8 * 3 * 9),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (6, 9, 11), (7 * 9) * 8 * 3 * 9),
    "grouped 1d": (nn.Conv1d(6, 9, 3, groups=3), (6, 20), 18 * 9 * 2 * 3),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (6, 9, 11), (7 * 9) * 6 * 1 * 9),
    "depthwise with two outputs each": (nn.Conv2d(6, 12, 3, groups=6), (6, 9, 11), (7 * 9) * 12 * 1 * 9),
    # A transposed kernel visits the places of its input.
    "transposed 1d": (nn.ConvTranspose1d(3, 8, 5, stride=2), (3, 20), 20 * 3 * 8 * 5),
    "transposed": (nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1, output_padding=1), (3, 5, 6), (5 * 6) * 3 * 8 * 16),
    "transposed and grouped": (nn.ConvTranspose2d(6, 8, 4, groups=2), (6, 5, 6), (5 * 6) * 6 * 4 * 16),
    "transposed and dilated": (nn.ConvTranspose2d(3, 8, 3, dilation=2), (3, 5, 6), (5 * 6) * 3 * 8 * 9),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 3), (2, 3, 4, 5), (3 * 4 * 5) * 2 * 4 * 27),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution(name: str) -> None:
    layer, shape, multiply_adds = CONVOLUTIONS[name]
    for model, weight in ((layer, "weight"), (nn.Sequential(nn.Identity(), layer), "1.weight")):
        assert layer_flops(model, shape) == (2 * multiply_adds, {weight: 2 * multiply_adds})


def test_memory_format_and_batch_norm_change_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3))
    first, second = 2 * (6 * 6) * 8 * 3 * 9, 2 * (1 * 1) * 4 * 8 * 9
    expected = (first + second, {"0.weight": first, "4.weight": second})
    assert layer_flops(model, (3, 8, 8)) == expected
    assert layer_flops(model.to(memory_format=torch.channels_last), (3, 8, 8)) == expected  # type: ignore[call-overload]


# --- other ways to write a product: x of 5 rows and 6 features, a weight of 4 outputs

PRODUCTS: dict[str, Forward] = {
    "F.linear": lambda m, x: F.linear(x, m.a.weight, m.a.bias),
    "@": lambda m, x: x @ m.a.weight.t(),
    "weight first": lambda m, x: m.a.weight @ x[0].t(),
    "matmul": lambda m, x: torch.matmul(x, m.a.weight.transpose(0, 1)),
    "mm": lambda m, x: torch.mm(x[0], m.a.weight.t()),
    "addmm": lambda m, x: torch.addmm(m.a.bias, x[0], m.a.weight.t()),
    "addmm in place": lambda m, x: x.new_zeros(5, 4).addmm_(x[0], m.a.weight.t()),
    "bmm": lambda m, x: torch.bmm(x, m.a.weight.t()[None]),
    "baddbmm": lambda m, x: torch.baddbmm(m.a.bias, x, m.a.weight.t()[None]),
    "addbmm": lambda m, x: torch.addbmm(x.new_zeros(5, 4), x, m.a.weight.t()[None]),
    "einsum": lambda m, x: torch.einsum("bnk,ok->bno", x, m.a.weight),
    "tensordot": lambda m, x: torch.tensordot(x, m.a.weight, ([2], [1])),
    "into memory": lambda m, x: torch.mm(x[0], m.a.weight.t(), out=x.new_empty(5, 4)),
    "row by row": lambda m, x: torch.stack([m.a.weight @ row for row in x[0]]),
    "row by row with a bias": lambda m, x: torch.stack([torch.addmv(m.a.bias, m.a.weight, row) for row in x[0]]),
    "number by number": lambda m, x: torch.stack([torch.dot(row, w) for row in x[0] for w in m.a.weight]),
    "number by number, conjugate": lambda m, x: torch.stack([torch.vdot(row, w) for row in x[0] for w in m.a.weight]),
    "output by output": lambda m, x: torch.cat([F.linear(x, w[None]) for w in m.a.weight], 2),
    "convolution": lambda m, x: F.conv1d(x.transpose(1, 2), m.a.weight[:, :, None]),
    "convolution of traced networks": lambda m, x: torch._convolution(
        x.transpose(1, 2), m.a.weight[:, :, None], None, [1], [0], [1], False, [0], 1, False, False, False, False
    ),
    "detached": lambda m, x: F.linear(x, m.a.weight.detach()),
    "centred": lambda m, x: F.linear(x, m.a.weight - m.a.weight.mean(1, keepdim=True)),
    "in lower precision": lambda m, x: F.linear(x.bfloat16(), m.a.weight.bfloat16()),
    "copied": lambda m, x: F.linear(x, torch.zeros(4, 6).copy_(m.a.weight)),
    "vmap": lambda m, x: torch.vmap(lambda row: m.a.weight @ row)(x[0]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_belongs_to_the_weight_it_reads(name: str) -> None:
    flops = 2 * 5 * 6 * 4
    assert layer_flops(Net(PRODUCTS[name], a=nn.Linear(6, 4)), (5, 6)) == (flops, {"a.weight": flops})


def test_products_of_activations_belong_to_no_weight() -> None:
    gate = Net(lambda m, x: (m.a(x) @ x.transpose(1, 2)) @ (x.abs() * m.b.weight), a=nn.Linear(6, 6), b=nn.Linear(6, 1))
    a, outer, inner = 2 * 5 * 6 * 6, 2 * 5 * 6 * 5, 2 * 5 * 5 * 6
    assert layer_flops(gate, (5, 6)) == (a + outer + inner, {"a.weight": a, "b.weight": 0})


def test_sparse_factors_count_as_dense_ones() -> None:
    graph = Net(lambda m, x: torch.eye(5).to_sparse() @ m.a(x[0]), a=nn.Linear(6, 4))
    assert layer_flops(graph, (5, 6)) == (2 * 5 * 6 * 4 + 2 * 5 * 5 * 4, {"a.weight": 2 * 5 * 6 * 4})


def test_a_layer_on_a_constant_keeps_its_products() -> None:
    """As the position bias of Swin v2: what two layers make of a table is an activation, not a weight."""
    bias = Net(lambda m, x: x @ F.relu(m.b(F.relu(m.a(torch.ones(7, 3)))).view(6, 7)), a=nn.Linear(3, 4), b=nn.Linear(4, 6))
    a, b, x = 2 * 7 * 3 * 4, 2 * 7 * 4 * 6, 2 * 5 * 6 * 7
    assert layer_flops(bias, (5, 6)) == (a + b + x, {"a.weight": a, "b.weight": b})


def test_concatenated_weights_share_a_product_by_their_rows() -> None:
    def copied(m: nn.Module, x: Tensor) -> Tensor:
        both = torch.zeros(14, 6)
        both[:4], both[4:] = m.a.weight, m.b.weight
        return F.linear(x, both)

    a, b = 2 * 5 * 6 * 4, 2 * 5 * 6 * 10
    for forward in (copied, lambda m, x: F.linear(x, torch.cat([m.a.weight, m.b.weight]))):
        joint = Net(forward, a=nn.Linear(6, 4), b=nn.Linear(6, 10))
        assert layer_flops(joint, (5, 6)) == (a + b, {"a.weight": a, "b.weight": b})


def test_weights_in_one_piece_of_memory_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), model.parameters())
    a, b = 2 * 5 * 6 * 4, 2 * 5 * 4 * 3
    assert layer_flops(model, (5, 6)) == (a + b, {"0.weight": a, "1.weight": b})


def test_a_standardised_kernel_is_its_weight() -> None:
    flops = 2 * (7 * 9) * 8 * 3 * 9
    assert layer_flops(ScaledStdConv2d(3, 8, 3, padding=0), (3, 9, 11)) == (flops, {"weight": flops})


# --- weights that are used twice


def test_a_repeated_layer_counts_each_call() -> None:
    flops = 2 * 3 * 6 * 6
    layer = nn.Linear(6, 6)
    assert layer_flops(Net(lambda m, x: m.a(m.a(m.a(x))), a=layer), (6,)) == (flops, {"a.weight": flops})
    assert layer_flops(nn.Sequential(layer, nn.ReLU(), layer, layer), (6,)) == (flops, {"0.weight": flops})
    shared = nn.Conv2d(2, 2, 3, padding=1)
    conv = 2 * (8 * 8 + 4 * 4) * 2 * 2 * 9
    assert layer_flops(nn.Sequential(shared, nn.MaxPool2d(2), shared), (2, 8, 8)) == (conv, {"0.weight": conv})


def test_a_tied_weight_counts_each_use() -> None:
    encoder, decoder = nn.Linear(6, 6), nn.Linear(6, 6)
    decoder.weight = encoder.weight
    model = nn.Sequential(encoder, nn.ReLU(), decoder, nn.Linear(6, 2))
    tied, last = 2 * 2 * 6 * 6, 2 * 6 * 2
    assert layer_flops(model, (6,)) == (tied + last, {"0.weight": tied, "3.weight": last})
    transposed = Net(lambda m, x: F.linear(m.a(x), m.a.weight.t()), a=nn.Linear(6, 4))
    assert layer_flops(transposed, (6,)) == (2 * 2 * 6 * 4, {"a.weight": 2 * 2 * 6 * 4})


def test_an_embedding_tied_to_the_last_layer_costs_nothing() -> None:
    embedding, last = nn.Embedding(9, 6), nn.Linear(6, 9)
    last.weight = embedding.weight
    model = Net(lambda m, x: m.last(m.embedding(x.long())), embedding=embedding, last=last)
    assert layer_flops(model, (5,)) == (2 * 5 * 6 * 9, {"embedding.weight": 2 * 5 * 6 * 9})


def test_pruned_networks_shrink_with_each_use_of_a_tied_weight() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, layer, nn.Linear(6, 2))
    mask = full_mask(model)
    mask["0.weight"][:3] = False
    assert cost.size(model, mask, layer_flops(model, (6,))).flops_kept == 2 * 2 * 3 * 6 + 2 * 6 * 2
