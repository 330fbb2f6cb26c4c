"""What is compared, as validated values: suites, the protocol of a block, and the row that is the CSV's contract."""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PROTOCOL_VERSION = "2"  # bumped by anything that changes numbers
SCHEMA = 2  # of rows: bumped when a column is added or removed, see `bench.migration`
# Controls of a method's mask (Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?"):
# "shuffle" permutes it within each layer, "reinit" keeps it and draws new initial weights, which are trained under it.
ABLATIONS = ("shuffle", "reinit")
DENSE = "dense"  # the name of the unpruned reference's rows


class UserError(Exception):
    """What a user can put right: one line that names the value, what is allowed and the nearest match. Exit code 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """' (did you mean 'X'?)' where an option is close to the name, else ''."""
    import methods  # late: suites and rows are read without torch, which only an error has to wait for

    return methods.nearest(name, options)


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among the options."""
    options = list(options)
    return UserError(f"unknown {kind} '{name}'{nearest(name, options)}; available: {', '.join(options)}")


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
    folder = resources.files("bench") / "suites"
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if f.name.endswith(".toml")}


def load_suite(name: str) -> Suite:
    """The suite of that name, or from that .toml file. Raises UserError in one line for what is wrong with it."""
    known = suites()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise unknown("suite", name, known)
    try:
        return Suite.model_validate(tomllib.loads(path.read_text()))
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of results.csv: the order of the fields is the order of the columns. None where nothing was measured."""

    suite: str
    dataset: str
    architecture: str
    granularity: str
    match: str
    method: str
    criterion: str
    training: str
    stage: str
    tuning: str
    ablation: str
    sparsity: float
    seed: int
    epochs: int
    finetune_epochs: int
    status: str
    sparsity_reached: float | None = None
    prunable_weights: int | None = None
    kept_weights: int | None = None
    parameters: int | None = None
    parameters_kept: int | None = None
    flops: int | None = None
    flops_kept: int | None = None
    accuracy: float | None = None
    top5: float | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    accuracy_before_finetune: float | None = None
    dense_accuracy: float | None = None
    dense_nll: float | None = None
    layers_collapsed: int | None = None
    effective_sparsity: float | None = None
    score_seconds: float | None = None
    train_seconds: float | None = None
    latency_ms: float | None = None
    dense_latency_ms: float | None = None
    peak_memory_mb: float | None = None
    hyperparameters: str = "{}"
    protocol: str = PROTOCOL_VERSION
    version: str = ""
    commit: str = ""
    torch: str = ""
    device: str = ""
    error: str = ""
    environment: str = "{}"
    schema: int = SCHEMA

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes a row one row: the key of the contract, in its order."""
        return (
            self.method, self.tuning, self.ablation, self.match, self.granularity, self.dataset, self.architecture,
            self.sparsity, self.seed, self.epochs, self.finetune_epochs,
        )  # fmt: skip


COLUMNS = tuple(f.name for f in dataclasses.fields(Row))
COST_COLUMNS = ("score_seconds", "train_seconds", "latency_ms", "dense_latency_ms", "peak_memory_mb")  # vary between runs


def digest(content: Any) -> str:
    """SHA-256 of JSON-able content, as canonical text: the name under which a step's result is kept."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
