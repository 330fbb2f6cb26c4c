"""Suites and the protocol of a block, as validated values."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.spec.errors import UserError, nearest, unknown


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Strict):
    """What decides a training besides method and seed; a suite sets them once and may override them per architecture."""

    batch_size: int | None = Field(None, ge=2)
    optimizer: str | None = Field(None, pattern="^(sgd|adam)$")
    lr_scale: float | None = Field(None, gt=0)
    augment: tuple[str, ...] | None = None


class Block(_Strict):
    """One data set with the architectures to run on it."""

    dataset: str
    architectures: tuple[str, ...] = Field(min_length=1)


Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Suite(_Strict):
    """A named comparison, as its TOML file says it. Every field may be overridden on the command line or per architecture."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str
    blocks: tuple[Block, ...] = Field(min_length=1)
    granularity: str = "weight"
    match: str = "weights"
    sparsities: tuple[Sparsity, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    methods: tuple[str, ...] = ("all",)
    epochs: int = Field(ge=1)
    finetune_epochs: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    finetune_lr_scale: float = Field(0.1, gt=0, le=1)
    trials: int = Field(0, ge=0)
    pool: int = Field(4, ge=1)
    tuning_seed: int = Field(1000, ge=0)
    tuning_seeds: int = Field(3, ge=1)
    batch_size: int = Field(128, ge=2)
    optimizer: str = Field("sgd", pattern="^(sgd|adam)$")
    lr_scale: float = Field(1.0, gt=0)
    augment: tuple[str, ...] = ()
    validation: float = Field(0.15, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    train_limit: int | None = Field(None, ge=10)
    pretrained: bool = False
    architecture: dict[str, Settings] = {}

    @field_validator("augment")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= {"crop", "flip"}:
            raise ValueError("augment takes 'crop' and 'flip'")
        return value

    @field_validator("sparsities", "seeds", "finetune_epochs")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _apart(self) -> "Suite":
        shared = sorted(set(self.seeds) & set(self.seeds_of_tuning))
        if shared:
            raise ValueError(f"tuning_seed {shared[0]} is one of the seeds: tuning and evaluation must not share one")
        return self

    @property
    def seeds_of_tuning(self) -> tuple[int, ...]:
        """The seeds that searches measure on: `tuning_seeds` of them, from `tuning_seed` on."""
        return tuple(range(self.tuning_seed, self.tuning_seed + self.tuning_seeds))

    def protocol(self, architecture: str) -> "Protocol":
        """The protocol of this suite for one architecture."""
        own = self.architecture.get(architecture, Settings())
        return Protocol(
            epochs=self.epochs,
            batch_size=own.batch_size or self.batch_size,
            optimizer=own.optimizer or self.optimizer,
            lr_scale=own.lr_scale or self.lr_scale,
            augment=self.augment if own.augment is None else own.augment,
            finetune_lr_scale=self.finetune_lr_scale,
            validation=self.validation,
            split_seed=self.split_seed,
            train_limit=self.train_limit,
            pretrained=self.pretrained,
        )


def suites() -> dict[str, Path]:
    """Name -> file of the suites that come with the package."""
    folder = resources.files("bench.spec") / "suites"
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if f.name.endswith(".toml")}


def load_suite(name: str) -> Suite:
    """The suite of that name, or from that .toml file. Raises UserError in one line for what is wrong with it."""
    known = suites()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise unknown("suite", name, known)
    try:
        return Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read suite file '{path}': {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"suite file '{path}' is not TOML: {error}") from None
    except ValidationError as error:
        raise UserError(f"suite '{path}': {first_fault(error, Suite)}") from None


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a pydantic validation, in one line."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest(where, model.model_fields)}; allowed: {', '.join(model.model_fields)}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}, got {fault['input']!r}"


@dataclass(frozen=True)
class Protocol:
    """All that is the same for every method of a block. `pretrained`: training starts from timm's weights, not from random ones."""

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
