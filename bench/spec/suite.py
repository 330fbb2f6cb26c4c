"""Suites and the protocol of a block, with checked values."""

import re
import reprlib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from bench.spec import toml_file
from bench.spec.errors import UserError, nearest, unknown
from bench.spec.protocol import (
    AUGMENT,
    LARGEST,
    LR_SCHEDULE,
    LR_SCHEDULES,
    MIXUP,
    OPTIMIZER,
    OPTIMIZERS,
    PRECISIONS,
    SMOOTHING,
    Augment,
    Block,
    Count,
    Moments,
    Protocol,
    Settings,
    Strict,
)  # fmt: skip

Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Suite(Strict):
    """A named comparison, as written in its TOML file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100, description="Name of the suite and of its leaderboard folder.")
    description: str = Field(description="What the suite compares, in one line.")
    blocks: tuple[Block, ...] = Field(min_length=1, description="Data sets, each with the architectures to run on it.")
    granularity: str = Field("weight", description="What is removed: weight, channel, or a pattern n:m.")
    match: str = Field(
        "weights",
        description="Quantity that the sparsities refer to: weights; with granularity channel also parameters, flops or latency.",
    )
    sparsities: tuple[Sparsity, ...] = Field(min_length=1, description="Fractions to remove. Each one is a row of the results.")
    early_sparsities: tuple[Sparsity, ...] | None = Field(
        None,
        description="Sparsities of methods that prune before or while they train, which train a network for each: some of `sparsities`."
        " These methods are then not fine-tuned. Without it, they have all sparsities and fine-tuning.",
    )
    seeds: tuple[Count, ...] = Field(min_length=1, description="Seeds of initial weights, batches and scoring. Published: at least three.")
    methods: tuple[str, ...] = Field(("all",), description="Names of methods; all means every registered method that is not costly.")
    epochs: Count = Field(
        description="Training epochs of every dense network; 0: the given weights are pruned as they are (pretrained networks)."
    )
    finetune_epochs: tuple[Count, ...] = Field((0,), description="Numbers of fine-tuning epochs after pruning; 0 is one-shot.")
    finetune_lr_scale: float = Field(0.1, gt=0, le=1, description="Learning rate of fine-tuning, as a fraction of the training's.")
    trials: Count = Field(0, description="Number of tuning trials per method and block; 0: no tuning.")
    pool: int = Field(
        4, ge=1, le=LARGEST, description="Number of training configurations that tuning chooses from, the same for all methods."
    )
    tuning_seed: Count = Field(1000, description="First seed of tuning. Seeds of tuning are not in `seeds`.")
    tuning_seeds: int = Field(3, ge=1, le=1000, description="Number of tuning seeds: tuning_seed, tuning_seed + 1, and so on.")
    timeout: float = Field(
        86400, gt=0, allow_inf_nan=False, description="Largest number of seconds of one job, which is then stopped; its rows have failed."
    )
    batch_size: int = Field(128, ge=2, le=LARGEST, description="Number of training examples per batch.")
    optimizer: str = Field("sgd", pattern=OPTIMIZERS, description=OPTIMIZER)
    lr_schedule: str = Field("cosine", pattern=LR_SCHEDULES, description=LR_SCHEDULE)
    lr_scale: float = Field(1.0, gt=0, description="Factor of the learning rate of every training.")
    augment: Augment = Field((), description=AUGMENT)
    label_smoothing: float = Field(0.0, ge=0, lt=1, description=SMOOTHING)
    mixup: float = Field(0.0, ge=0, allow_inf_nan=False, description=MIXUP)
    precision: str = Field(
        "full", pattern=PRECISIONS, description="Forward passes of training: full, in the weights' precision; bfloat16, under autocast."
    )
    include: tuple[str, ...] = Field(
        (), description="Patterns of names of further parameters to prune, e.g. embed.*; see methods.prunable."
    )
    exclude: tuple[str, ...] = Field((), description="Patterns of names of weights to leave out. Sparsities do not count them.")
    calibration: int | None = Field(
        None, ge=1, le=LARGEST, description="Number of training samples that scoring may read, the same for all methods; needs epochs = 0."
    )
    recalibrate_batchnorm: bool = Field(
        False, description="Whether every network gets new statistics of batch norm after pruning and after fine-tuning."
    )
    mean: Moments | None = Field(
        None, description="Mean of each channel that inputs are standardised with, for pixels in [0, 1]; without it, that of the data."
    )
    std: Moments | None = Field(None, description="Standard deviation of each channel, as mean.")
    validation: float = Field(
        0.15, ge=0, lt=1, description="Fraction of the training data that is held out for tuning; 0: none, without tuning."
    )
    split_seed: Count = Field(0, description="Seed that splits training and validation data.")
    train_limit: int | None = Field(None, ge=10, le=LARGEST, description="Largest number of training examples; without it, all.")
    pretrained: bool = Field(False, description="Whether training starts from timm's pretrained weights instead of random ones.")
    weights: str | None = Field(None, description="Checkpoint that training starts from, a .safetensors file; for one architecture.")
    architecture: dict[str, Settings] = Field({}, description="Values for single architectures, instead of those above.")

    @field_validator("sparsities", "early_sparsities", "seeds", "finetune_epochs")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if value is None else tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _apart(self) -> "Suite":
        if self.epochs and self.calibration is not None:
            raise ValueError("calibration: limits what methods read of a trained network: it needs epochs = 0")
        tuned = [(self.trials, self.validation), *((self._of(b, "trials"), self._of(b, "validation")) for b in self.blocks)]
        if any(trials and not validation for trials, validation in tuned):
            raise ValueError("validation: tuning needs validation data; validation = 0 needs trials = 0")
        moments = ((own.mean, own.std) for own in (*self.blocks, *self.architecture.values()))
        for mean, std in ((self.mean, self.std), *moments):
            if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
                raise ValueError("mean: mean and std must both be given, with one number for each channel")
            if std is not None and min(std) <= 0:
                raise ValueError("std: must be greater than 0")
        shared = sorted(set(self.seeds) & set(self.seeds_of_tuning))
        if shared:
            raise ValueError(
                f"tuning_seed: tuning uses seed {shared[0]}, which is one of `seeds`; tuning and evaluation must not share seeds"
            )
        return self

    @model_validator(mode="after")
    def _started(self) -> "Suite":
        named = list(dict.fromkeys(a for b in self.blocks for a in b.architectures))
        if self.weights is not None and len(named) > 1:
            raise ValueError(f"weights: a checkpoint is for one architecture, and there are {len(named)}: {', '.join(named)}")
        if self.pretrained and (self.weights or any(own.weights for own in self.architecture.values())):
            raise ValueError("weights: a network starts either from a checkpoint or, with `pretrained`, from the weights of timm")
        return self

    @model_validator(mode="after")
    def _extents(self) -> "Suite":
        every = [(b.dataset, a) for b in self.blocks for a in b.architectures]
        for dataset, architecture in every:
            if every.count((dataset, architecture)) > 1:
                raise ValueError(f"blocks: {dataset}/{architecture} occurs twice")
        if not self.epochs and any(b.epochs for b in self.blocks):
            raise ValueError("blocks: with epochs = 0 no network is trained, so that no block can have epochs of its own")
        if self.early_sparsities is not None:
            if not self.early_sparsities or not set(self.early_sparsities) <= set(self.sparsities):
                raise ValueError("early_sparsities: must be some of `sparsities`")
            if 0 not in self.finetune_epochs:
                raise ValueError("early_sparsities: these methods are not fine-tuned, so that finetune_epochs must contain 0")
        return self

    @property
    def seeds_of_tuning(self) -> tuple[int, ...]:
        """The seeds of tuning: `tuning_seeds` of them, starting at `tuning_seed`."""
        return tuple(range(self.tuning_seed, self.tuning_seed + self.tuning_seeds))

    def block(self, dataset: str, architecture: str) -> Block:
        """The block of a data set and an architecture; one without values of its own if the suite has none."""
        bare = Block(dataset=dataset, architectures=(architecture,))
        return next((b for b in self.blocks if b.dataset == dataset and architecture in b.architectures), bare)

    def protocol(self, dataset: str, architecture: str) -> Protocol:
        """The protocol for a data set and an architecture: the architecture's values, else the block's, else the suite's."""
        layers = (self.architecture.get(architecture, Settings()), self.block(dataset, architecture), self)
        every = {f.name: [getattr(layer, f.name, None) for layer in layers] for f in fields(Protocol)}
        found: dict[str, Any] = {name: next((v for v in values if v is not None), None) for name, values in every.items()}
        return Protocol(**found)

    @property
    def tunes(self) -> bool:
        """Whether methods are tuned in any block."""
        return any(self._of(block, "trials") for block in self.blocks)

    @property
    def trials_said(self) -> str:
        """The numbers of trials of the blocks that are tuned, for messages: "10", or "5 or 10" if they differ."""
        return " or ".join(map(str, sorted({self._of(block, "trials") for block in self.blocks} - {0})))

    def trials_of(self, dataset: str, architecture: str) -> int:
        """The number of tuning trials per method for a data set and an architecture."""
        found: int = self._of(self.block(dataset, architecture), "trials")
        return found

    def _of(self, block: Block, name: str) -> Any:
        own = getattr(block, name)
        return getattr(self, name) if own is None else own

    def extent(self, *, early: bool) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """The sparsities and the numbers of fine-tuning epochs of a method. `early`: whether it prunes before or while it trains."""
        if early and self.early_sparsities is not None:
            return self.early_sparsities, tuple(f for f in self.finetune_epochs if not f)
        return self.sparsities, self.finetune_epochs


def suites() -> dict[str, Path]:
    """The suites that come with the package: name -> file."""
    folder = resources.files("bench.spec") / "suites"
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if f.name.endswith(".toml")}


def load_suite(name: str) -> Suite:
    """A suite by its name, or read from a .toml file.

    Raises:
        UserError: there is no suite of this name, or the file has an error. The message names the key.
    """
    known = suites()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise unknown("suite", name, known)
    content = toml_file.read(path, f"suite file '{path}'")
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise UserError(f"suite '{path}': {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """The first error in the values of a suite, in one line that names the key."""
    fault = error.errors()[0]
    *outer, key = fault["loc"] or ("",)
    where = ".".join(map(str, fault["loc"]))
    allowed = _model_of(outer).model_fields
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest(str(key), allowed)}; allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"the key '{where}' is missing: {allowed[str(key)].description}"
    if not where:
        return fault["msg"].removeprefix("Value error, ")  # a rule for several keys: its message names them
    said = re.sub(r"^\w+ should ", "must ", fault["msg"].removeprefix("Value error, "))
    names = re.fullmatch(r"must match pattern '\^\(([a-z0-9|]+)\)\$'", said)
    said = f"must be {' or '.join(names[1].replace('|', ', ').rsplit(', ', 1))}" if names else said
    return f"{where}: {said}, got {reprlib.repr(fault['input'])}"


def _model_of(path: list[int | str]) -> type[BaseModel]:
    """The model whose key is at this path in a suite."""
    nested: dict[str, type[BaseModel]] = {"blocks": Block, "architecture": Settings}
    return nested.get(str(path[0]), Suite) if path else Suite
