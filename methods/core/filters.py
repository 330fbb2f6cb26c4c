"""The filters of a layer: what is removed from a weight with one output channel."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from methods.core.prunable import places


def with_filters(model: nn.Module) -> dict[str, int]:
    """Name of the weight of each Linear or convolutional layer -> its groups if it is a transposed convolution, otherwise 0."""
    layers = {name: place.module for name, place in places(model) if isinstance(place.module, (nn.Linear, _ConvNd))}
    return {name: layer.groups if isinstance(layer, _ConvTransposeNd) else 0 for name, layer in layers.items()}


def as_filters(weight: Tensor, transposed: int) -> Tensor:
    """A weight as (outputs, entries of a filter); `transposed`: see `with_filters`. Gradients flow back."""
    if not transposed:
        return weight.flatten(1)
    grouped: Tensor = weight.unflatten(0, (transposed, -1))  # of (in, out/groups, *kernel)
    return grouped.transpose(1, 2).flatten(0, 1).flatten(1)


def filters(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the shapes of weights, with one row for each output channel.

    Args:
        model: the network.
        values: name of a prunable weight -> tensor of its shape.

    Returns:
        Name -> (outputs, entries of a filter), for the weights of Linear and convolutional layers; others are left out.
    """
    return {name: as_filters(values[name], transposed) for name, transposed in with_filters(model).items() if name in values}
