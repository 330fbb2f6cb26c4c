"""FLOPs by hand, for the tests of the counter: 2 for each multiply-add of a product. 5 tokens of width 12 unless said otherwise."""

from collections.abc import Callable

from torch import Tensor, nn

from bench.trial.flops import layer_flops

Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Modules by name, with a forward pass of the test's own."""

    def __init__(self, forward: Forward, **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def count(model: nn.Module, *shape: int) -> int:
    """All FLOPs of the model, as counted."""
    return layer_flops(model, shape)[0]


def attention(queries: int = 5, keys: int = 5, width: int = 12) -> int:
    """Scores, and values weighted by them, of all heads together."""
    return 2 * (2 * queries * keys * width)


def projection(tokens: int = 5, inputs: int = 12, outputs: int = 12) -> int:
    """A linear layer on every token."""
    return 2 * tokens * inputs * outputs


def recurrent(gates: int, hidden: int, layers: int = 1, directions: int = 1, project: int = 0, steps: int = 5, inputs: int = 6) -> int:
    """Every gate is a product of the input and one of the state, at every step; the projection makes the state smaller."""
    state, multiply_adds = project or hidden, 0
    for _ in range(layers):
        multiply_adds += directions * steps * (gates * hidden * (inputs + state) + hidden * project)
        inputs = directions * state
    return 2 * multiply_adds


def recurrent_matrices(gates: int, hidden: int, layers: int = 1, directions: int = 1, steps: int = 5, inputs: int = 6) -> dict[str, int]:
    """The same by matrix: W_ih multiplies the input of every step, W_hh the state."""
    found = {}
    for layer in range(layers):
        for back in ("", "_reverse")[:directions]:
            found[f"weight_ih_l{layer}{back}"] = 2 * steps * gates * hidden * inputs
            found[f"weight_hh_l{layer}{back}"] = 2 * steps * gates * hidden * hidden
        inputs = directions * hidden
    return found


def encoder_layer(hidden: int) -> int:
    """A layer of a transformer's encoder: attention with its projections, then two linear layers."""
    return projection(outputs=36) + attention() + projection() + projection(outputs=hidden) + projection(inputs=hidden)
