"""Options that all commands and `bench.run` share: values that replace a suite's, and machines and folders.

This module imports quickly, because the command line builds its options from these fields.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICES = ("auto", "cpu", "cuda")


def _instead(help: str, default: str = "the suite's") -> Any:
    return field(default=None, metadata={"help": help, "default": default})


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """Values to use instead of the suite's; None: the suite's value. Every command and `bench.run` have options with these names."""

    methods: tuple[str, ...] | None = _instead(
        "'all', all@TRAINING, or method names; criterion@training combines any two; name(option=value) sets hyperparameters.",
        "the suite's, mostly all",
    )
    datasets: tuple[str, ...] | None = _instead("Data sets to use instead of the suite's; your own is written FILE.py:NAME.")
    architectures: tuple[str, ...] | None = _instead(
        "Architectures to use instead of the suite's: razorbench's own, any timm name, or FILE.py:NAME."
    )
    sparsities: tuple[float, ...] | None = _instead("Fractions of weights to remove, each in [0, 1).")
    seeds: tuple[int, ...] | None = _instead("Seeds to use instead of the suite's.")
    granularity: str | None = _instead(
        "What is removed: weight, channel, 2:4 or any n:m; with options: channel(floor=0.1,round_to=8).", "the suite's, mostly weight"
    )
    match: str | None = _instead(
        "Quantity that the sparsity refers to: weights; with --granularity channel also parameters, flops or latency.",
        "the suite's, mostly weights",
    )
    trials: int | None = _instead("Number of tuning trials per method; 0 uses the default hyperparameters.")
    epochs: int | None = _instead("Training epochs; 0 prunes given weights as they are.")
    finetune_epochs: tuple[int, ...] | None = _instead("Fine-tuning epochs after pruning; 0: no fine-tuning (one-shot).")
    timeout: float | None = _instead("Seconds after which a job is stopped, and its rows have failed.", "the suite's, mostly a day")
    weights: str | None = _instead("Checkpoint that training starts from, a .safetensors file; for one architecture.")
    pretrained: bool | None = _instead("Start from timm's pretrained weights.")
    calibration: int | None = _instead("Number of training samples that scoring may read; needs --epochs 0.")
    mean: tuple[float, ...] | None = _instead("Mean of each channel that the network expects, for pixels in [0, 1].", "that of the data")
    std: tuple[float, ...] | None = _instead("Standard deviation of each channel, as --mean.", "that of the data")
    recalibrate_batchnorm: bool | None = _instead("Estimate the statistics of batch norm again after pruning, for every method.")


def _said(default: Any, help: str, shown: str = "", *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "default": shown})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Machines, folders and plug-ins of a command. Every command and `bench.run` have options with these names."""

    executor: str = _said("local", "Where jobs run: local or ray.")
    ray_address: str | None = _said(None, "Address of a Ray cluster.")
    workers: int | None = _said(None, "Number of worker processes.", "the number of cores; 1 on a GPU")
    device: str = _said("auto", "auto, cpu or cuda.")
    stack: int = _said(1, "Number of small networks to train as one on a GPU: those of one method, architecture and seed.", "1: one by one")
    store: str | None = _said(None, "Database URL of the results.", "sqlite:///.bench/store.db", secret=True)
    data_root: Path | None = _said(None, "Folder of torchvision's data sets; missing ones are downloaded.")  # noqa: RUF009 (a field)
    log: Path | None = _said(  # noqa: RUF009 (a field)
        None,
        "Folder for TensorBoard event files: loss and evidence of each epoch, measurements of each row. On several machines: a shared one.",
    )
    plugin: tuple[str, ...] = _said((), "A Python file that registers methods, metrics or networks; repeatable.")
