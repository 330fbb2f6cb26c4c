"""FLOPs are the same in every circumstance, counting leaves no trace, and the networks of the boards have those of a walk over them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.networks import build
from bench.trial.flops import _Counter, _plain_kernels, layer_flops
from methods import prunable
from tests.bench.handcounts import Forward, Net, attention, count, encoder_layer, projection, recurrent, recurrent_matrices

# --- the same number in every circumstance


def mixed() -> nn.Module:
    """Layers of every kind, for 5 tokens of width 12, and tensors made in the forward pass."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.lstm(m.encoder(x))[0]  # type: ignore[operator]
        y = m.conv(torch.einsum("bnk,bmk->bnm", y, y)[:, None])  # type: ignore[operator]
        y = (y * torch.ones(5, 5).to(y.device)).flatten(2)  # of the default precision
        return m.last(y @ y.transpose(1, 2))  # type: ignore[operator]

    return Net(
        forward,
        encoder=nn.TransformerEncoderLayer(12, 4, 20, batch_first=True),
        lstm=nn.LSTM(12, 4, 2, bidirectional=True, batch_first=True),
        conv=nn.Conv2d(1, 2, 3, padding=1),
        last=nn.Linear(2, 3),
    )


MIXED_LAYERS = {"conv.weight": 2 * 25 * 2 * 9, "last.weight": 2 * 2 * 2 * 3} | {
    "encoder.self_attn.in_proj_weight": projection(outputs=36),
    "encoder.self_attn.out_proj.weight": projection(),
    "encoder.linear1.weight": projection(outputs=20),
    "encoder.linear2.weight": projection(inputs=20),
}
MIXED_LAYERS |= {f"lstm.{name}": flops for name, flops in recurrent_matrices(4, 4, 2, 2, inputs=12).items()}
MIXED = (
    encoder_layer(20)
    + recurrent(4, 4, 2, 2, inputs=12)
    + 2 * 5 * 8 * 5  # each pair of steps
    + MIXED_LAYERS["conv.weight"]
    + 2 * 2 * 25 * 2  # each pair of channels
    + MIXED_LAYERS["last.weight"],
    MIXED_LAYERS,
)

Switches = dict[str, Any]


def switches() -> Switches:
    """Every switch of the process that counting could have changed."""
    backends = torch.backends
    return {
        "mkldnn": (backends.mkldnn.enabled, backends.mkldnn.deterministic, backends.mkldnn.allow_tf32),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32),
        "einsum": backends.opt_einsum.enabled,
        "fast path": backends.mha.get_fastpath_enabled(),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@contextmanager
def setting(change: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    """A switch of the process set by one function, and set back to `before`."""
    change(value)
    try:
        yield
    finally:
        change(before)


CALLERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "without mkldnn": lambda: setting(lambda on: setattr(torch.backends.mkldnn, "enabled", on), False, True),
    "without cudnn": lambda: setting(lambda on: setattr(torch.backends.cudnn, "enabled", on), False, True),
    "without fast path": lambda: setting(torch.backends.mha.set_fastpath_enabled, False, True),
    "flash attention only": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "plain attention only": lambda: sdpa_kernel(SDPBackend.MATH),
    "double precision": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "two threads": lambda: setting(torch.set_num_threads, 2, torch.get_num_threads()),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("training", [True, False])
def test_the_callers_state_changes_nothing_and_is_left_alone(caller: str, training: bool) -> None:
    model = mixed().train(training)
    with CALLERS[caller]():
        before = switches()
        assert layer_flops(model, (5, 12)) == MIXED
        assert switches() == before


def test_networks_run_on_plain_kernels() -> None:
    seen: list[Switches] = []

    def look(m: nn.Module, x: Tensor) -> Tensor:
        seen.append(switches())
        return x

    count(Net(look), 3)
    (inside,) = seen
    assert (inside["mkldnn"][0], inside["cudnn"][0], inside["einsum"], inside["fast path"]) == (False,) * 4
    assert inside["attention"] == (False, False, False, True), "flash, efficient, cuDNN, plain"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_changes_nothing(dtype: torch.dtype) -> None:
    assert layer_flops(mixed().to(dtype), (5, 12)) == MIXED


def test_integer_parameters_say_nothing_about_the_inputs() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 4, dtype=torch.float64))
    model[0].register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    assert count(model, 6) == 2 * 6 * 4


def test_the_meta_device_changes_nothing() -> None:
    assert layer_flops(mixed().to("meta"), (5, 12)) == MIXED


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_gpu_would_run_the_same_products() -> None:
    """Tensors without data that claim to be on a GPU go the ways of a GPU; the public function wants its random state too."""
    with FakeTensorMode(), torch.device("cuda"):
        model, inputs = mixed().eval(), torch.zeros(1, 5, 12)
        counter = _Counter(prunable(model), inputs)
        with torch.no_grad(), _plain_kernels(torch.float32), counter:
            model(inputs)
    assert (counter.total, counter.layers) == MIXED


@pytest.mark.gpu
def test_a_gpu_changes_nothing() -> None:
    before = switches()
    assert layer_flops(mixed().cuda(), (5, 12)) == MIXED
    assert layer_flops(mixed().cuda().half(), (5, 12)) == MIXED
    assert switches() == before


def test_switches_are_restored_after_a_failure() -> None:
    def fail(m: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("no forward pass")

    before = switches()
    with pytest.raises(ValueError, match="no forward pass"):
        layer_flops(Net(fail, a=nn.Linear(2, 2).double()), (2,))
    assert switches() == before


def test_threads_do_not_disturb_each_other() -> None:
    started = threading.Barrier(2, timeout=10)

    def after(seconds: float) -> Forward:
        def forward(m: nn.Module, x: Tensor) -> Tensor:
            time.sleep(seconds)
            return m.lstm(x)[0]  # type: ignore[no-any-return, operator]

        return forward

    def counted(seconds: float) -> int:
        started.wait()
        return count(Net(after(seconds), lstm=nn.LSTM(6, 7, batch_first=True)), 5, 6)

    before = switches()
    with ThreadPoolExecutor(2) as pool:  # the second still counts when the first has finished
        assert list(pool.map(counted, (0.02, 0.1))) == [recurrent(4, 7)] * 2
    assert switches() == before


class Restless(nn.Module):
    """Changes all it can in a forward pass: buffers, weights, attributes, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4, track_running_stats=True)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("renewed", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.renewed = self.renewed + torch.rand(())
        self.a.weight.mul_(0.5)
        self.last = x
        return self.norm(self.a(x))  # type: ignore[no-any-return]


def test_the_model_and_random_numbers_are_left_alone() -> None:
    model = Restless().train()
    model.norm.eval()
    model.a.weight.requires_grad_(False)
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    identity = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    assert count(model, 6) == 2 * 6 * 4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())} == identity
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.norm.training, model.a.weight.requires_grad, model.last) == (True, False, False, None)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


# --- the networks of the committed boards, counted by a walk over their modules


def walked(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, dict[str, int]]:
    """FLOPs from the shapes that hooks see: Linear, Conv2d and LSTM layers, and attention of timm's transformers."""
    layers: dict[str, int] = {}
    rest: list[int] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def see(module: nn.Module, inputs: Any, out: Any) -> None:
            if isinstance(module, nn.Linear):
                layers[f"{name}.weight"] = 2 * out.numel() * module.in_features
            elif isinstance(module, nn.Conv2d):
                layers[f"{name}.weight"] = 2 * out.numel() * module.in_channels // module.groups * prod(module.kernel_size)
            elif isinstance(module, Attention):
                _, tokens, width = inputs[0].shape
                rest.append(attention(tokens, tokens, width))
            elif isinstance(module, nn.LSTM):
                lines, steps, width = inputs[0].shape
                directions = 1 + module.bidirectional
                matrices = recurrent_matrices(4, module.hidden_size, module.num_layers, directions, steps=steps, inputs=width)
                layers.update({f"{name}.{matrix}": lines * flops for matrix, flops in matrices.items()})

        return see

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return sum(layers.values()) + sum(rest), layers


@pytest.mark.parametrize(
    ("name", "shape", "flops"),
    [
        ("mlp", (1, 8, 8), 2 * (64 * 100 + 100 * 100 + 100 * 10)),
        ("mlp", (30,), 2 * (30 * 100 + 100 * 100 + 100 * 10)),
        ("mlp_256", (1, 28, 28), 2 * (784 * 256 + 256 * 10)),
        ("lenet5", (1, 8, 8), 2 * (64 * 6 * 25 + 16 * 16 * 6 * 25 + 64 * 120 + 120 * 84 + 84 * 10)),
        ("lenet5", (1, 28, 28), 2 * (784 * 6 * 25 + 100 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10)),
        # 4 patches of 16 pixels, then 5 tokens of width 48: qkv, attention, projection, MLP; the class token goes to the head
        ("vit_micro_patch4", (1, 8, 8), 2 * (4 * 16 * 48 + 5 * 48 * (144 + 48 + 192 + 192) + 2 * 25 * 48 + 48 * 10)),
    ],
)
def test_networks_of_the_boards(name: str, shape: tuple[int, ...], flops: int) -> None:
    model = build.create(name, shape, 10)
    assert layer_flops(model, shape) == walked(model, shape)
    assert count(model, *shape) == flops


@pytest.mark.parametrize("name", ["resnet20", "wrn16_4", "mobilenetv3_small_050", "deit_tiny_patch16_224", "sequencer2d_s"])
def test_other_networks(name: str) -> None:
    shape = (3, 32, 32)
    model = build.create(name, shape, 10)
    found = layer_flops(model, shape)
    assert found == walked(model, shape)
    assert set(found[1]) == set(prunable(model))
    assert min(found[1].values()) > 0
