"""The state of a training with a penalty of its own, which ends with the training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from methods.core.interface import Posterior


@dataclass(frozen=True)
class Unfinished(Posterior):
    """The state until `Training.finish` returns a plain posterior. Fine-tuning continues a plain one, without the penalty.

    Attributes:
        penalised: name of each parameter with the penalty -> what its training needs to know of it.
    """

    penalised: Mapping[str, int] = field(default_factory=dict)
