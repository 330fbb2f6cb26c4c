"""The protocol of a block: what all methods share there, from a suite, one of its blocks and one of its architectures."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Checked values that do not change; unknown keys are errors."""

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
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Moments = Annotated[tuple[float, ...], Field(min_length=1)]


def _known(value: tuple[str, ...]) -> tuple[str, ...]:
    if not set(value) <= set(AUGMENTATIONS):
        raise ValueError(f"must be any of {', '.join(map(repr, AUGMENTATIONS[:-1]))} and {AUGMENTATIONS[-1]!r}")
    return value


Augment = Annotated[tuple[str, ...], AfterValidator(_known)]


class Replaced(Strict):
    """The values of a suite that a block or an architecture may replace; None: not replaced."""

    batch_size: int | None = Field(None, ge=2, le=LARGEST, description="Number of training examples per batch.")
    optimizer: str | None = Field(None, pattern=OPTIMIZERS, description=OPTIMIZER)
    lr_schedule: str | None = Field(None, pattern=LR_SCHEDULES, description=LR_SCHEDULE)
    lr_scale: float | None = Field(None, gt=0, description="Factor of the learning rate of every training.")
    augment: Augment | None = Field(None, description=AUGMENT)
    label_smoothing: float | None = Field(None, ge=0, lt=1, description=SMOOTHING)
    mixup: float | None = Field(None, ge=0, allow_inf_nan=False, description=MIXUP)
    include: tuple[str, ...] | None = Field(None, description="Patterns of names of further parameters to prune.")
    exclude: tuple[str, ...] | None = Field(None, description="Patterns of names of weights to leave out.")
    mean: Moments | None = Field(None, description="Mean of each channel that inputs are standardised with.")
    std: Moments | None = Field(None, description="Standard deviation of each channel that inputs are standardised with.")


class Settings(Replaced):
    """The values of a suite that one architecture may replace."""

    weights: str | None = Field(None, description="Checkpoint that training starts from, a .safetensors file.")


class Block(Replaced):
    """One data set with the architectures to run on it, and values for them instead of the suite's."""

    dataset: str = Field(description="Name of the data set, folder:PATH, tar:PATH, timm:NAME, hf:NAME, or FILE.py:NAME.")
    architectures: tuple[str, ...] = Field(
        min_length=1, description="Names of networks: razorbench's own, any name of timm, or FILE.py:NAME."
    )
    epochs: int | None = Field(None, ge=1, le=LARGEST, description="Training epochs of every dense network.")
    validation: float | None = Field(None, ge=0, lt=1, description="Fraction of the training data that is held out for tuning.")
    train_limit: int | None = Field(None, ge=10, le=LARGEST, description="Largest number of training examples.")
    trials: Count | None = Field(None, description="Number of tuning trials per method and architecture; 0: no tuning.")


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
