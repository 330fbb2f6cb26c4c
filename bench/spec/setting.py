"""What a network is made with: the values of all hyperparameters, and what the search for them took.

`Setting` is the content of the column `hyperparameters`; `encoded` and `decoded` are the only two who know its JSON.
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Search:
    """What a search took, and the mean pruned validation accuracy that it saw: of the defaults, and of what it chose.

    `trials`: measured candidates. `epochs`: training epochs, without the networks that all methods share.
    """

    trials: int
    epochs: int
    default_accuracy: float
    accuracy: float


@dataclass(frozen=True)
class Setting:
    """Hyperparameters by name: of the training, of the criterion (None for a dense network), of the schedule if there is one.

    `finetune_lr_scale`: the learning rate of fine-tuning as a fraction of the training's; None if nothing is fine-tuned.
    `search`: of tuned methods.
    """

    training: dict[str, Any]
    criterion: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    finetune_lr_scale: float | None = None
    search: Search | None = None

    def encoded(self) -> str:
        """The setting as JSON with sorted keys."""
        said: dict[str, Any] = {"training": self.training}
        if self.criterion is not None:
            said["criterion"] = self.criterion
        if self.schedule is not None:
            said["schedule"] = self.schedule
        if self.finetune_lr_scale is not None:
            said["finetuning"] = {"lr_scale": self.finetune_lr_scale}
        if self.search is not None:
            validation = {"default": self.search.default_accuracy, "tuned": self.search.accuracy}
            said["tuning"] = {"trials": self.search.trials, "epochs": self.search.epochs, "validation": validation}
        return json.dumps(said, sort_keys=True)


def decoded(text: str) -> Setting:
    """The setting that a cell holds. Raises ValueError in one line where it is not one."""
    try:
        said = json.loads(text)
        parts = {name: said[name] for name in ("training", "criterion", "schedule") if name in said}
        if "training" not in parts or not all(isinstance(part, dict) for part in parts.values()):
            raise TypeError
        scale = said["finetuning"]["lr_scale"] if "finetuning" in said else None
        return Setting(**parts, finetune_lr_scale=scale, search=_search(said["tuning"]) if "tuning" in said else None)
    except (ValueError, KeyError, TypeError):
        raise ValueError("not a JSON object with the values of training, criterion, schedule, fine-tuning and tuning") from None


def _search(said: dict[str, Any]) -> Search:
    validation = said["validation"]
    return Search(int(said["trials"]), int(said["epochs"]), float(validation["default"]), float(validation["tuned"]))
