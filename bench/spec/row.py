"""The row of results.csv, the format of all published results.

To add a metric, add a field here and a function of the same name in `bench.trial.metrics`.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from bench.spec.columns import Judged, Role, column, declared

PROTOCOL_VERSION = "2"  # increased by every change of the computation that changes results
SCHEMA = 5  # version of the columns: increased with every new column, which is declared with `since`
# Controls for a method (Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?"):
# "shuffle" permutes the mask within each layer; "reinit" keeps the mask, and trains new initial weights with it.
ABLATIONS = ("shuffle", "reinit")
DENSE = "dense"  # the method name of the unpruned reference
STATUSES = ("ok", "collapsed", "failed", "unsupported")
RECALIBRATIONS = ("none", "batchnorm")
MATCHES = ("weights", "parameters", "flops", "latency")
COLLAPSED = "a layer has no weights left, or the dense network did not train (chance accuracy)"
SHARE: dict[str, Any] = {"least": 0, "most": 1}
OUTPUTS = Judged(witnesses=("nll", "brier"))
SCORE = Judged(positive=True, witnesses=("nll", "brier"))


def _metric(meaning: str, unit: str = "", judged: Judged = SCORE, **more: Any) -> Any:
    return column(meaning, Role.MEASURE, unit, default=None, judged=judged, least=0, **more)


def _cost(meaning: str, unit: str) -> Any:
    return column(meaning, Role.COST, unit, default=None, least=0)


def _origin(meaning: str, role: Role = Role.ORIGIN, default: Any = "", **more: Any) -> Any:
    return column(meaning, role, default=default, **{"empty": True, **more})


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of results.csv: one method, data set, architecture, sparsity and seed. The fields are the columns, in this order.

    None (an empty cell) means not measured.
    """

    suite: str = column("name of the suite", Role.SETTING, pattern="[a-z0-9][a-z0-9_-]*")
    dataset: str = column("data set", Role.KEY)
    architecture: str = column("network: one of razorbench's own, or a name of timm", Role.KEY)
    granularity: str = column("what is removed: weight, channel, or a pattern n:m", Role.KEY)
    match: str = column("quantity that `sparsity` is a fraction of", Role.KEY, values=MATCHES)
    method: str = column("method, or `dense` for the unpruned reference", Role.KEY)
    criterion: str = column("which weights are kept; empty for a dense reference", Role.SETTING, empty=True)
    training: str = column("how the network is trained", Role.SETTING)
    stage: str = column(
        "when the criterion is applied; empty for a dense reference", Role.SETTING, empty=True, values=("init", "during", "after")
    )
    tuning: str = column("hyperparameters: default, or tuned on validation data", Role.KEY, values=("default", "tuned"))
    ablation: str = column("control instead of the method's own network", Role.KEY, values=("none", *ABLATIONS))
    sparsity: float = column("requested fraction to remove", Role.KEY, "fraction", below=1, **SHARE)
    seed: int = column("seed of initial weights, batches and scoring", Role.KEY, least=0)
    epochs: int = column("training epochs of the network, without fine-tuning", Role.KEY, "epochs", least=0)
    finetune_epochs: int = column("fine-tuning epochs after pruning; 0: no fine-tuning (one-shot)", Role.KEY, "epochs", least=0)
    status: str = column(f"collapsed: {COLLAPSED}", Role.COUNT, values=STATUSES)
    sparsity_reached: float | None = column("fraction of prunable weights removed", Role.COUNT, "fraction", default=None, **SHARE)
    prunable_weights: int | None = column(
        "weights that sparsities count: matrices and kernels that multiply activations", Role.COUNT, "weights", default=None, least=1
    )
    kept_weights: int | None = column("prunable weights that the mask keeps", Role.COUNT, "weights", default=None, least=0)
    parameters: int | None = column("all parameters of the dense network", Role.COUNT, "parameters", default=None, least=1)
    parameters_kept: int | None = column("kept parameters, with biases and normalisation", Role.COUNT, "parameters", default=None, least=0)
    flops: int | None = column(
        "floating-point operations of the dense network for one input; multiplication and addition count as two", Role.COUNT, "FLOP",
        default=None, least=0,
    )  # fmt: skip
    flops_kept: int | None = _metric(
        "floating-point operations of the pruned network for one input; those of a layer are proportional to its kept weights", "FLOP",
        Judged(positive=True),
    )  # fmt: skip
    accuracy: float | None = _metric("test accuracy", "fraction", OUTPUTS, most=1)
    top5: float | None = _metric("test top-5 accuracy; empty for fewer than six classes", "fraction", OUTPUTS, most=1)
    nll: float | None = _metric("test negative log-likelihood per sample", "nats", Judged(positive=True, witnesses=("brier",)))
    brier: float | None = _metric(
        "test Brier score per sample, in its multi-class form", "", Judged(positive=True, witnesses=("nll",)), most=2
    )
    ece: float | None = _metric("test expected calibration error, 15 equal bins of confidence", "fraction", most=1)
    accuracy_before_finetune: float | None = _metric(
        "test accuracy after pruning, before fine-tuning", "fraction", Judged(pool="accuracy"), most=1
    )
    dense_accuracy: float | None = _metric(
        "test accuracy of the row's own dense network with the same fine-tuning", "fraction",
        Judged(pool="accuracy", witnesses=("dense_nll",)), most=1,
    )  # fmt: skip
    dense_nll: float | None = _metric(
        "test negative log-likelihood per sample of that dense network", "nats", Judged(positive=True, pool="nll")
    )
    worst_class_accuracy: float | None = _metric(
        "test accuracy of the class with the lowest accuracy", "fraction", Judged(), most=1, since=3
    )
    layers_collapsed: int | None = column("number of layers without any weight left", Role.MEASURE, "layers", default=None, least=0)
    effective_sparsity: float | None = _metric(
        "sparsity, if weights that are on no path from input to output count as removed", "fraction", Judged(), most=1
    )
    score_seconds: float | None = _cost("time to score and prune; empty if scoring is part of training", "s")
    train_seconds: float | None = _cost("time of all training for this row", "s")
    latency_ms: float | None = _cost("time of a forward pass of one batch, pruned network as it would be deployed", "ms")
    dense_latency_ms: float | None = _cost("time of a forward pass of one batch, dense network", "ms")
    peak_memory_mb: float | None = _cost("largest GPU memory; empty on a CPU", "MB")
    hyperparameters: str = column(
        "values of training, criterion, schedule, fine-tuning and tuning, as a JSON object", Role.SETTING, default="{}", json="object"
    )
    protocol: str = column("version of the protocol", Role.SETTING, default=PROTOCOL_VERSION, values=(PROTOCOL_VERSION,))
    version: str = _origin("version of razorbench")
    commit: str = _origin("commit of its source code; + means uncommitted changes")
    torch: str = _origin("version of torch", Role.WHERE)
    device: str = _origin("kind and name of the device", Role.WHERE)
    error: str = _origin("why the row failed or is not supported")
    environment: str = _origin(
        "number of threads and versions of packages that influence the numbers, as a JSON object", Role.WHERE, "{}", empty=False,
        json="object", since=2,
    )  # fmt: skip
    schema: int = column("version of these columns", Role.ORIGIN, default=SCHEMA, least=1, since=2)
    recalibration: str = column(
        "statistics that were estimated again after pruning: none, or batchnorm", Role.KEY, default="none", values=RECALIBRATIONS, since=4
    )
    initial_weights: str = column(
        "weights that the network starts from: random, pretrained (those of timm), or sha256: and the digest of a checkpoint",
        Role.SETTING, default="random", pattern="random|pretrained|sha256:[0-9a-f]{64}", since=4,
    )  # fmt: skip
    calibration_samples: int | None = column(
        "number of training samples that scoring may read; empty: all", Role.SETTING, "samples", default=None, least=1, since=4
    )
    recipe: str = column(
        "settings of training that all methods share, as a JSON object; {} in rows of older releases", Role.SETTING, default="{}",
        json="object", since=4,
    )  # fmt: skip
    match_reached: float | None = column("fraction removed of the quantity `match`", Role.COST, "fraction", default=None, most=1, since=4)
    plugin_metrics: str = _origin("values of the metrics of plug-ins, as a JSON object", default="{}", empty=False, json="numbers", since=4)
    training_flops: int | None = column(
        "floating-point operations of all steps of training and fine-tuning, without scoring and curvature", Role.COUNT, "FLOP",
        default=None, least=0, since=5,
    )  # fmt: skip
    dense_training_flops: int | None = column(
        "floating-point operations of one training and fine-tuning of the dense network", Role.COUNT, "FLOP", default=None, least=0,
        since=5,
    )  # fmt: skip

    @property
    def identity(self) -> tuple[Any, ...]:
        """The values of the columns `KEY`, which identify the row."""
        return _identity(self)


# The key columns, in the order of the specification.
KEY = (
    "method", "tuning", "ablation", "match", "granularity", "dataset", "architecture", "sparsity", "seed", "epochs", "finetune_epochs",
    "recalibration",
)  # fmt: skip
_identity = attrgetter(*KEY)
DECLARED = declared(Row)
COLUMNS = tuple(DECLARED)


_SETTERS: dict[str, Any] = {name: getattr(Row, name).__set__ for name in COLUMNS}


def rows_of_columns(count: int, values: Mapping[str, Iterable[Any]]) -> list[Row]:
    """Rows from whole columns: the same as `Row(...)` for each, in a third of the time.

    Args:
        count: number of rows.
        values: column -> at least that many values, for all columns.
    """
    rows = [Row.__new__(Row) for _ in range(count)]
    for name, set_value in _SETTERS.items():
        deque(map(set_value, rows, values[name]), maxlen=0)
    return rows


def changed(row: Row, **values: Any) -> Row:
    """The row with other values in some columns: the same as `dataclasses.replace`, in a third of the time."""
    if not values.keys() <= _SETTERS.keys():
        raise TypeError(f"a row has no column '{min(values.keys() - _SETTERS.keys())}'")
    made = Row.__new__(Row)
    for name, set_value in _SETTERS.items():
        set_value(made, values[name] if name in values else getattr(row, name))
    return made


def columns_of(*roles: Role) -> tuple[str, ...]:
    """The names of the columns with one of these roles, in the order of results.csv."""
    return tuple(name for name, column in DECLARED.items() if column.role in roles)
