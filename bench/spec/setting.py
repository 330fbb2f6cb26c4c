"""The hyperparameters of a row, and the cost and result of the search for them.

`Setting` is the content of the column `hyperparameters`. Only `Setting.encoded` and `decoded` know its JSON format.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from bench.spec import strict_json


@dataclass(frozen=True)
class Search:
    """Cost and result of a search.

    `trials`: number of trials. `epochs`: training epochs, without the networks shared by all methods. `default_accuracy`, `accuracy`: mean
    pruned validation accuracy of the default and of the selected hyperparameters, fractions.
    """

    trials: int
    epochs: int
    default_accuracy: float
    accuracy: float


@dataclass(frozen=True)
class Setting:
    """All hyperparameters of a method, by name.

    `training`: of the training. `criterion`: of the criterion; None for a dense network. `schedule`: of the schedule, if there is one.
    `finetune_lr_scale`: learning rate of fine-tuning, as a fraction of the training's; None without fine-tuning. `search`: how they were
    found, for tuned methods.
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
    """The setting in a cell of the column `hyperparameters`.

    Raises:
        ValueError: the cell is invalid.
    """
    try:
        said = strict_json.loads_object(text)
        parts = {name: said[name] for name in ("training", "criterion", "schedule") if name in said}
        if "training" not in parts or not all(isinstance(part, dict) for part in parts.values()):
            raise TypeError
        scale = _number(said["finetuning"]["lr_scale"]) if "finetuning" in said else None
        return Setting(**parts, finetune_lr_scale=scale, search=_search(said["tuning"]) if "tuning" in said else None)
    except (ValueError, KeyError, TypeError):
        raise ValueError("not a JSON object with the values of training, criterion, schedule, fine-tuning and tuning") from None


def _search(said: dict[str, Any]) -> Search:
    validation = said["validation"]
    return Search(_count(said["trials"]), _count(said["epochs"]), _number(validation["default"]), _number(validation["tuned"]))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError
    return float(value)
