"""What the published CSVs mean: a Frictionless Data Package (v1) with a table schema for each of them.

`SCHEMAS` says type, unit, meaning and allowed values of every column once: for datapackage.json, and for the check of somebody
else's rows (`bench.merge`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from bench.ranking import leaderboard, tuning_gain
from bench.spec.row import ABLATIONS, COLUMNS, PROTOCOL_VERSION
from bench.spec.suite import Suite
from bench.storage.results_csv import KINDS

SHARE = {"minimum": 0, "maximum": 1}
COUNT = {"minimum": 0}
AMOUNT = {"minimum": 0}
STATUSES = ("ok", "collapsed", "failed", "unsupported")
KEY = ("method", "tuning", "ablation", "match", "granularity", "dataset", "architecture", "sparsity", "seed", "epochs", "finetune_epochs")
# Column -> (meaning, unit, constraints). A column without a unit is a name, or a number without dimension.
_ROW: dict[str, tuple[str, str, dict[str, Any]]] = {
    "suite": ("name of the suite", "", {"pattern": "[a-z0-9][a-z0-9_-]*"}),
    "dataset": ("data set", "", {}),
    "architecture": ("network: one of ours, or a name of timm", "", {}),
    "granularity": ("what is removed: single weights, channels, n of m", "", {}),
    "match": ("what equal sparsity means", "", {"enum": ["weights", "parameters", "flops", "latency"]}),
    "method": ("method, or `dense` for the unpruned reference", "", {}),
    "criterion": ("which weights matter; empty for a dense reference", "", {}),
    "training": ("how the network is trained", "", {}),
    "stage": ("when the criterion is applied; empty for a dense reference", "", {"enum": ["", "init", "during", "after"]}),
    "tuning": ("hyperparameters: the declared defaults, or tuned on validation data", "", {"enum": ["default", "tuned"]}),
    "ablation": ("control in place of the method's own network", "", {"enum": ["none", *ABLATIONS]}),
    "sparsity": ("share of prunable weights asked to be removed", "fraction", {"minimum": 0, "maximum": 1}),
    "seed": ("seed of initial weights, batches and scoring", "", COUNT),
    "epochs": ("training epochs behind the network, without fine-tuning", "epochs", {"minimum": 1}),
    "finetune_epochs": ("fine-tuning epochs after the cut; 0 is one-shot", "epochs", COUNT),
    "status": (f"collapsed: {leaderboard.COLLAPSED}", "", {"enum": list(STATUSES)}),
    "sparsity_reached": ("share of prunable weights removed", "fraction", SHARE),
    "prunable_weights": ("weights of Linear and Conv layers", "weights", {"minimum": 1}),
    "kept_weights": ("prunable weights that the mask keeps", "weights", COUNT),
    "parameters": ("all parameters of the dense network", "parameters", {"minimum": 1}),
    "parameters_kept": ("parameters left, with biases and norms", "parameters", COUNT),
    "flops": ("floating-point operations of the dense network for one input; a multiply and an add are two", "FLOP", COUNT),
    "flops_kept": ("those of the pruned network, a layer's shrinking with its share of kept weights", "FLOP", COUNT),
    "accuracy": ("test accuracy", "fraction", SHARE),
    "top5": ("test top-5 accuracy; empty for fewer than six classes", "fraction", SHARE),
    "nll": ("test negative log-likelihood a sample", "nats", AMOUNT),
    "brier": ("test Brier score a sample, the multi-class form", "", {"minimum": 0, "maximum": 2}),
    "ece": ("test expected calibration error, 15 equal bins of confidence", "fraction", SHARE),
    "accuracy_before_finetune": ("test accuracy after the cut, before fine-tuning", "fraction", SHARE),
    "dense_accuracy": ("test accuracy of the row's own dense network with the same fine-tuning", "fraction", SHARE),
    "dense_nll": ("its test negative log-likelihood a sample", "nats", AMOUNT),
    "layers_collapsed": ("layers without a weight left", "layers", COUNT),
    "effective_sparsity": ("sparsity when weights on no path from input to output count as removed", "fraction", SHARE),
    "score_seconds": ("time to score and cut; empty where it is a part of the training", "s", AMOUNT),
    "train_seconds": ("time of all training behind the row", "s", AMOUNT),
    "latency_ms": ("time of the pruned network as deployed, a batch", "ms", AMOUNT),
    "dense_latency_ms": ("that of the dense network", "ms", AMOUNT),
    "peak_memory_mb": ("largest GPU memory; empty on a CPU", "MB", AMOUNT),
    "hyperparameters": ("training, criterion, schedule, fine-tuning and tuning of the row, as a JSON object", "", {}),
    "protocol": ("version of the protocol", "", {"enum": [PROTOCOL_VERSION]}),
    "version": ("version of razorbench", "", {}),
    "commit": ("commit of its source; + marks changes", "", {}),
    "torch": ("version of torch", "", {}),
    "device": ("kind and name of the device", "", {}),
    "error": ("why the row failed, or is not supported", "", {}),
    "environment": ("threads of the computation and versions of packages that decide numbers, as a JSON object", "", {}),
    "schema": ("version of these columns", "", {"minimum": 1}),
}
_BOARD: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "track": ("string", "what may be ranked together", "", {"required": True}),
    "tuning": ("string", "hyperparameters at their defaults, or tuned", "", {"enum": ["default", "tuned"]}),
    "rank": ("integer", "the same as rank_low", "", {"minimum": 1}),
    "rank_low": ("integer", "1 + the number of methods that are significantly better; empty for what is not ranked", "", {"minimum": 1}),
    "rank_high": ("integer", "number of ranked methods - those that are significantly worse", "", {"minimum": 1}),
    "method": ("string", "method; a control has its ablation in brackets", "", {"required": True}),
    "relative_area": ("number", "area under the accuracy-sparsity curve over dense accuracy, mean over blocks", "", AMOUNT),
    "relative_area_low": ("number", "lower end of its 95 % interval over seeds, cut to what is possible", "", AMOUNT),
    "relative_area_high": ("number", "upper end of its 95 % interval over seeds, cut to what is possible", "", AMOUNT),
    "relative_area_std": ("number", "its standard deviation over seeds, pooled within blocks", "", AMOUNT),
    "sparsity_within_one_point": ("number", "largest sparsity within one point of dense accuracy, interpolated", "fraction", SHARE),
    "accuracy_90": ("number", "mean test accuracy at 90 % sparsity", "fraction", SHARE),
    "accuracy_95": ("number", "mean test accuracy at 95 % sparsity", "fraction", SHARE),
    "accuracy_99": ("number", "mean test accuracy at 99 % sparsity", "fraction", SHARE),
    "nll_95": ("number", "mean test negative log-likelihood at 95 % sparsity", "nats", AMOUNT),
    "ece_95": ("number", "mean test expected calibration error at 95 % sparsity", "fraction", SHARE),
    "scoring_epochs": ("number", "median cost of scoring, in epochs of the row's own training", "epochs", AMOUNT),
    "wins": ("integer", "blocks and seeds with a larger area than magnitude's", "", COUNT),
    "ties": ("integer", "blocks and seeds with an equal area", "", COUNT),
    "losses": ("integer", "blocks and seeds with a smaller area", "", COUNT),
    "blocks": ("integer", "blocks that the area is a mean of: data sets with an architecture whose dense network trained", "blocks", COUNT),
    "seeds": ("integer", "seeds", "seeds", COUNT),
    "rows": ("integer", "rows behind the line", "rows", COUNT),
    "failed": ("integer", "rows that failed, counted as accuracy 0", "rows", COUNT),
    "collapsed": ("integer", f"rows in which {leaderboard.COLLAPSED}", "rows", COUNT),
    "unsupported": ("integer", "rows that the method does not support", "rows", COUNT),
    "epochs": ("number", "mean epochs of training and fine-tuning", "epochs", COUNT),
}
_TUNED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    **{name: ("string", _ROW[name][0], "", {"required": True}) for name in ("dataset", "architecture", "granularity", "match", "method")},
    "finetune_epochs": ("integer", _ROW["finetune_epochs"][0], "epochs", COUNT),
    "trials": ("integer", "trials of the search", "trials", {"minimum": 1}),
    "tuning_epochs": ("integer", "epochs of training that the search took, beside the pool's", "epochs", COUNT),
    "validation_default": ("number", "mean pruned validation accuracy of the defaults", "fraction", SHARE),
    "validation_tuned": ("number", "mean pruned validation accuracy of what was chosen", "fraction", SHARE),
    "area_default": ("number", "area under the test accuracy-sparsity curve at the defaults", "fraction", SHARE),
    "area_tuned": ("number", "the same, tuned", "fraction", SHARE),
    "gain": ("number", "area_tuned - area_default", "", {"minimum": -1, "maximum": 1}),
    "seeds": ("integer", "seeds", "seeds", {"minimum": 1}),
    "hyperparameters": ("string", "what was chosen, as a JSON object", "", {"required": True}),
}


def _field(name: str, kind: str, meaning: str, unit: str, constraints: Mapping[str, Any]) -> dict[str, Any]:
    made = {"name": name, "type": kind, "description": meaning}
    return made | ({"unit": unit} if unit else {}) | ({"constraints": dict(constraints)} if constraints else {})


def _row_field(name: str) -> dict[str, Any]:
    meaning, unit, constraints = _ROW[name]
    kind = "number" if "float" in KINDS[name] else "integer" if "int" in KINDS[name] else "string"
    may_be_empty = "None" in KINDS[name] or name in ("criterion", "stage", "version", "commit", "torch", "device", "error")
    if "" in constraints.get("enum", ()):  # an empty cell is a missing value, which no list of values is asked about
        constraints = {"enum": [value for value in constraints["enum"] if value]}
    return _field(name, kind, meaning, unit, constraints | ({} if may_be_empty else {"required": True}))


SCHEMAS: dict[str, dict[str, Any]] = {
    "results": {"fields": [_row_field(name) for name in COLUMNS], "primaryKey": list(KEY), "missingValues": [""]},
    "leaderboard": {
        "fields": [_field(n, *_BOARD[n]) for n in leaderboard.COLUMNS],
        "primaryKey": ["track", "tuning", "method"],
        "missingValues": [""],
    },
    "tuned": {"fields": [_field(n, *_TUNED[n]) for n in tuning_gain.COLUMNS], "primaryKey": list(tuning_gain.CELL), "missingValues": [""]},
}


def package(suite: Suite, files: Mapping[str, bytes]) -> str:
    """datapackage.json for the CSVs among these files (path below the folder -> contents): nothing in it but what follows from them.

    The schema of results/*.csv is a file of its own, beside: there is one of it, and many of them.
    """
    resources = [_resource(path, content) for path, content in sorted(files.items()) if path.endswith(".csv")]
    return dumps({
        "profile": "data-package",
        "name": f"razorbench-{suite.name}",
        "title": f"razorbench, suite {suite.name}",
        "description": suite.description,
        "resources": resources,
    })  # fmt: skip


def _resource(path: str, content: bytes) -> dict[str, Any]:
    evidence = path.startswith("results/")
    stem = path.removesuffix(".csv")
    return {
        "name": _slug(stem),
        "path": path,
        "profile": "tabular-data-resource",
        "format": "csv",
        "mediatype": "text/csv",
        "encoding": "utf-8",
        "bytes": len(content),
        "hash": "sha256:" + hashlib.sha256(content).hexdigest(),
        "schema": f"schemas/{'results' if evidence else stem}.json",
    }


def _slug(stem: str) -> str:
    """A resource's name: lower case, digits, - . _ and / alone; what loses by that is told apart by a digest."""
    plain = re.sub(r"[^a-z0-9._/]+", "-", stem)
    return plain if plain == stem else f"{plain.strip('-')}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def schema_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The schemas that these CSVs need, by path below the folder."""
    used = {"results"} | {path.removesuffix(".csv") for path in files if path.endswith(".csv") and "/" not in path}
    return {f"schemas/{name}.json": dumps(SCHEMAS[name]).encode() for name in sorted(used)}


def dumps(content: Any) -> str:
    """JSON as a person reads it, ending in a line break."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
