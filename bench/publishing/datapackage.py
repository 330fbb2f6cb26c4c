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
from bench.spec.columns import Column
from bench.spec.row import COLLAPSED, DECLARED, KEY
from bench.spec.suite import Suite

SHARE = {"minimum": 0, "maximum": 1}
COUNT = {"minimum": 0}
AMOUNT = {"minimum": 0}
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
    "collapsed": ("integer", f"rows in which {COLLAPSED}", "rows", COUNT),
    "unsupported": ("integer", "rows that the method does not support", "rows", COUNT),
    "epochs": ("number", "mean epochs of training and fine-tuning", "epochs", COUNT),
}
_TUNED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    **{
        name: ("string", DECLARED[name].meaning, "", {"required": True})
        for name in ("dataset", "architecture", "granularity", "match", "method")
    },
    "finetune_epochs": ("integer", DECLARED["finetune_epochs"].meaning, "epochs", COUNT),
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


def _row_field(column: Column) -> dict[str, Any]:
    limits: dict[str, Any] = {"minimum": column.least, "maximum": column.most, "pattern": column.pattern, "enum": list(column.values)}
    constraints = {name: limit for name, limit in limits.items() if limit not in (None, "", [])}
    return _field(column.name, column.type, column.meaning, column.unit, constraints | ({} if column.empty else {"required": True}))


SCHEMAS: dict[str, dict[str, Any]] = {
    "results": {"fields": [_row_field(column) for column in DECLARED.values()], "primaryKey": list(KEY), "missingValues": [""]},
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
