"""Suites and the protocol of a block, with checked values."""

import re
import reprlib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.spec import toml_file
from bench.spec.errors import UserError, nearest, unknown


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


OPTIMIZERS = "^(sgd|adam|adamw)$"
PRECISIONS = "^(full|bfloat16)$"
LR_SCHEDULES = "^(cosine|linear|constant|step)$"
AUGMENTATIONS = ("crop", "flip", "randaugment")
OPTIMIZER = "Optimizer: sgd, adam or adamw; adamw needs methods whose training decouples weight decay, e.g. all@decoupled."
LR_SCHEDULE = (
    "Learning rate after the warm-up: cosine or linear, to zero; constant; or step: a tenth from half of the training on, a hundredth from "
    "three quarters on."
)
AUGMENT = (
    "Augmentation of the training images: any of crop, flip and randaugment (all images of a batch get the same operations; pixels from "
    "outside of the image have the mean of the training images)."
)
SMOOTHING = "Label smoothing ε of the training steps, in [0, 1): targets are (1 - ε) y + ε / classes."
MIXUP = "Mixup of the training steps: each batch is mixed with its neighbours with a weight λ ~ Beta(α, α); the value is α, 0: off."


LARGEST = 2**53  # of a count or a seed: JSON and floating-point numbers hold it exactly
Moments = Annotated[tuple[float, ...], Field(min_length=1)]


class Settings(_Strict):
    """The values of a suite that one architecture may replace."""

    batch_size: int | None = Field(None, ge=2, le=LARGEST, description="Number of training examples per batch.")
    optimizer: str | None = Field(None, pattern=OPTIMIZERS, description=OPTIMIZER)
    lr_schedule: str | None = Field(None, pattern=LR_SCHEDULES, description=LR_SCHEDULE)
    lr_scale: float | None = Field(None, gt=0, description="Factor of the learning rate of every training.")
    augment: tuple[str, ...] | None = Field(None, description=AUGMENT)
    label_smoothing: float | None = Field(None, ge=0, lt=1, description=SMOOTHING)
    mixup: float | None = Field(None, ge=0, allow_inf_nan=False, description=MIXUP)
    include: tuple[str, ...] | None = Field(None, description="Patterns of names of further parameters to prune.")
    exclude: tuple[str, ...] | None = Field(None, description="Patterns of names of weights to leave out.")
    mean: Moments | None = Field(None, description="Mean of each channel that inputs are standardised with.")
    std: Moments | None = Field(None, description="Standard deviation of each channel that inputs are standardised with.")
    weights: str | None = Field(None, description="Checkpoint that training starts from, a .safetensors file.")


class Block(_Strict):
    """One data set with the architectures to run on it."""

    dataset: str = Field(description="Name of the data set, folder:PATH, tar:PATH, timm:NAME, hf:NAME, or FILE.py:NAME.")
    architectures: tuple[str, ...] = Field(
        min_length=1, description="Names of networks: razorbench's own, any name of timm, or FILE.py:NAME."
    )


Sparsity = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]


class Suite(_Strict):
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
    augment: tuple[str, ...] = Field((), description=AUGMENT)
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

    @field_validator("augment")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(AUGMENTATIONS):
            raise ValueError(f"must be any of {', '.join(map(repr, AUGMENTATIONS[:-1]))} and {AUGMENTATIONS[-1]!r}")
        return value

    @field_validator("sparsities", "seeds", "finetune_epochs")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _apart(self) -> "Suite":
        if self.epochs and self.calibration is not None:
            raise ValueError("calibration: limits what methods read of a trained network: it needs epochs = 0")
        if self.trials and not self.validation:
            raise ValueError("validation: tuning needs validation data; validation = 0 needs trials = 0")
        for mean, std in ((self.mean, self.std), *((own.mean, own.std) for own in self.architecture.values())):
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

    @property
    def seeds_of_tuning(self) -> tuple[int, ...]:
        """The seeds of tuning: `tuning_seeds` of them, starting at `tuning_seed`."""
        return tuple(range(self.tuning_seed, self.tuning_seed + self.tuning_seeds))

    def protocol(self, architecture: str) -> "Protocol":
        """The protocol of this suite for one architecture."""
        own = self.architecture.get(architecture, Settings())
        return Protocol(
            epochs=self.epochs,
            batch_size=own.batch_size or self.batch_size,
            optimizer=own.optimizer or self.optimizer,
            lr_schedule=own.lr_schedule or self.lr_schedule,
            lr_scale=own.lr_scale or self.lr_scale,
            augment=self.augment if own.augment is None else own.augment,
            label_smoothing=self.label_smoothing if own.label_smoothing is None else own.label_smoothing,
            mixup=self.mixup if own.mixup is None else own.mixup,
            finetune_lr_scale=self.finetune_lr_scale,
            validation=self.validation,
            split_seed=self.split_seed,
            train_limit=self.train_limit,
            pretrained=self.pretrained,
            precision=self.precision,
            calibration=self.calibration,
            recalibrate_batchnorm=self.recalibrate_batchnorm,
            mean=self.mean if own.mean is None else own.mean,
            std=self.std if own.std is None else own.std,
            include=self.include if own.include is None else own.include,
            exclude=self.exclude if own.exclude is None else own.exclude,
            weights=own.weights or self.weights,
        )


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


@dataclass(frozen=True)
class Protocol:
    """What all methods of a block share, from the keys of the suite with the same names."""

    epochs: int
    batch_size: int
    optimizer: str
    lr_scale: float
    augment: tuple[str, ...]
    finetune_lr_scale: float
    validation: float
    split_seed: int
    train_limit: int | None = None
    pretrained: bool = False
    precision: str = "full"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lr_schedule: str = "cosine"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    weights: str | None = None
    calibration: int | None = None
    recalibrate_batchnorm: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def with_moments(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Protocol":
        """The same protocol with mean and standard deviation of the inputs."""
        return replace(self, mean=mean, std=std)
