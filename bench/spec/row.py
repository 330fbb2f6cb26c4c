"""The row of results.csv, which is the contract of all published files."""

import dataclasses
from dataclasses import dataclass
from typing import Any

PROTOCOL_VERSION = "2"  # bumped by anything that changes numbers
SCHEMA = 2  # of rows: bumped when a column is added or removed, see `bench.migration`
# Controls of a method's mask (Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?"):
# "shuffle" permutes it within each layer, "reinit" keeps it and draws new initial weights, which are trained under it.
ABLATIONS = ("shuffle", "reinit")
DENSE = "dense"  # the name of the unpruned reference's rows


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
