"""The criterion of a method that needs no training or schedule of its own."""

from typing import Any

from methods.core.configurations import Criterion
from methods.registry.registry import get


def criterion_alone(method: str, hyperparameters: dict[str, Any]) -> Criterion:
    """The criterion of a method, with these hyperparameters.

    Raises:
        ValueError: if the method is more than a criterion; the message says what to call.
    """
    found = get(method)
    if found.schedule is not None:
        alone = "" if found.criterion == found.name else f", or use its criterion alone: '{found.criterion}'"
        raise ValueError(
            f"'{method}' prunes by a schedule during training: call mask, posterior = methods.train_pruned(model, batches, "
            f"method='{method}', sparsity=...){alone}"
        )
    if found.training != "map":
        base = found.name.partition("@")[0] if "@" in found.name else found.criterion
        raise ValueError(
            f"'{method}' needs a network trained with '{found.training}': call posterior = methods.train(model, batches, "
            f"training='{found.training}') first, then prune with method='{base}', posterior=posterior"
        )
    return found.make_criterion(**hyperparameters)
