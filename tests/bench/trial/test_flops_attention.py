"""FLOPs of attention and recurrent layers against counts by hand, on the fast and the plain paths of torch and timm."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.trial.flops import layer_flops
from tests.bench.handcounts import Net, attention, count, encoder_layer, projection, recurrent, recurrent_matrices

# --- attention: 5 tokens of width 12


@pytest.fixture(params=[True, False])
def fast_path(request: pytest.FixtureRequest) -> Iterator[bool]:
    """With torch's fast path on, as it is by default, and off."""
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(True)


def attending(*, call: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    layer = nn.MultiheadAttention(12, 4, batch_first=True, **options)
    return Net(lambda m, x: m.layer(x, x, x, **(call or {}))[0], layer=layer)


@pytest.mark.parametrize(
    "call",
    [
        {"need_weights": True},
        {"need_weights": True, "average_attn_weights": False},
        {"need_weights": False},
        {"need_weights": False, "attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True},
        {"key_padding_mask": torch.tensor([[False] * 4 + [True]])},
    ],
)
def test_multihead_attention(call: dict[str, Any], fast_path: bool) -> None:
    out = projection()
    expected = projection(outputs=3 * 12) + attention() + out
    assert layer_flops(attending(call=call), (5, 12)) == (
        expected,
        {"layer.in_proj_weight": projection(outputs=3 * 12), "layer.out_proj.weight": out},
    )


def test_multihead_attention_with_other_keys() -> None:
    assert count(attending(add_bias_kv=True), 5, 12) == projection(outputs=36) + attention(keys=6) + projection()
    assert count(attending(add_zero_attn=True), 5, 12) == projection(outputs=36) + attention(keys=6) + projection()
    cross = Net(
        lambda m, x: m.layer(x, x[:, :3, :8], x[:, :3, :7], need_weights=False)[0],
        layer=nn.MultiheadAttention(12, 4, batch_first=True, kdim=8, vdim=7),
    )
    keys_and_values = projection(3, 8) + projection(3, 7)
    assert count(cross, 5, 12) == projection() + keys_and_values + attention(keys=3) + projection()


def test_scaled_dot_product_attention_of_every_kind() -> None:
    def heads(x: Tensor, n: int) -> Tensor:
        return x.unflatten(2, (n, -1)).transpose(1, 2)

    def plain(**options: Any) -> nn.Module:
        return Net(lambda m, x: F.scaled_dot_product_attention(heads(x, 2), heads(x, 2), heads(x, 2), **options))

    assert count(plain(), 5, 12) == attention()
    assert count(plain(is_causal=True), 5, 12) == attention()
    assert count(plain(attn_mask=torch.zeros(5, 5)), 5, 12) == attention()
    grouped = Net(lambda m, x: F.scaled_dot_product_attention(heads(x, 4), *[heads(x[..., :6], 2)] * 2, enable_gqa=True))
    assert count(grouped, 5, 12) == attention()
    wide = Net(lambda m, x: F.scaled_dot_product_attention(heads(x, 2), heads(x, 2), heads(x[..., :6], 2)))
    assert count(wide, 5, 12) == 2 * 5 * 5 * 12 + 2 * 5 * 5 * 6


def test_a_kernel_that_a_network_insists_on_is_counted_too() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])

    assert count(Net(forward), 5, 12) == attention()


@pytest.mark.parametrize("training", [True, False])
def test_transformer_layers(fast_path: bool, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True).train(training)
    own = {"self_attn.out_proj": projection(), "linear1": projection(outputs=20), "linear2": projection(inputs=20)}
    layers = {"self_attn.in_proj_weight": projection(outputs=36)} | {f"{name}.weight": flops for name, flops in own.items()}
    assert layer_flops(layer, (5, 12)) == (encoder_layer(20), layers)
    ignored = torch.tensor([[False] * 4 + [True]])
    encoder = Net(lambda m, x: m.layers(x, src_key_padding_mask=ignored), layers=nn.TransformerEncoder(layer, 2))
    assert count(encoder, 5, 12) == 2 * encoder_layer(20)
    decoder = Net(lambda m, x: m.layer(x, x[:, :3]), layer=nn.TransformerDecoderLayer(12, 4, 20, batch_first=True))
    cross = projection() + 2 * projection(3) + attention(keys=3) + projection()
    assert count(decoder, 5, 12) == encoder_layer(20) + cross


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_of_a_vision_transformer(fused: bool) -> None:
    block = Block(12, 4, mlp_ratio=2)
    block.attn.fused_attn = fused
    own = {
        "attn.qkv": projection(outputs=36),
        "attn.proj": projection(),
        "mlp.fc1": projection(outputs=24),
        "mlp.fc2": projection(inputs=24),
    }
    total = sum(own.values()) + attention()
    assert layer_flops(block, (5, 12)) == (total, {f"{name}.weight": flops for name, flops in own.items()})


# --- recurrent layers: 5 steps of 6 features


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_layer(kind: type[nn.RNNBase], gates: int, bias: bool, layers: int, directions: int) -> None:
    layer = kind(6, 7, layers, bias=bias, bidirectional=directions == 2, batch_first=True)
    model = Net(lambda m, x: m.last(m.layer(x)[0]), layer=layer, last=nn.Linear(7 * directions, 3))
    last = 2 * 5 * 7 * directions * 3
    matrices = {f"layer.{name}": flops for name, flops in recurrent_matrices(gates, 7, layers, directions).items()}
    assert sum(matrices.values()) == recurrent(gates, 7, layers, directions)
    assert layer_flops(model, (5, 6)) == (recurrent(gates, 7, layers, directions) + last, matrices | {"last.weight": last})
    over_time = Net(lambda m, x: m.layer(x.transpose(0, 1))[0], layer=kind(6, 7, layers, bias=bias, bidirectional=directions == 2))
    assert count(over_time, 5, 6) == recurrent(gates, 7, layers, directions)


def test_an_lstm_with_projections() -> None:
    for layers, both in ((1, False), (2, True)):
        model = Net(lambda m, x: m.layer(x)[0], layer=nn.LSTM(6, 7, layers, bidirectional=both, proj_size=4, batch_first=True))
        assert count(model, 5, 6) == recurrent(4, 7, layers, 1 + both, project=4)


def test_packed_sequences_count_the_steps_that_are_there() -> None:
    def packed(m: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = m.layer(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3]), batch_first=True))[0].data  # type: ignore[operator]
        return out

    assert count(Net(packed, layer=nn.LSTM(6, 7, batch_first=True)), 5, 6) == recurrent(4, 7, steps=3)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_a_recurrent_cell(kind: type[nn.RNNCellBase], gates: int) -> None:
    def steps(m: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = m.cell(step, state)  # type: ignore[operator]
        return x

    assert count(Net(steps, cell=kind(6, 7)), 5, 6) == recurrent(gates, 7)
