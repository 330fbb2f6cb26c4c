"""What the published CSVs mean: a Frictionless Data Package (v1) with a table schema for each of them.

`SCHEMAS` says type, unit, meaning and allowed values of every column once: for datapackage.json, and for the check of somebody
else's rows (`bench.merge`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from bench.ranking import tuning_gain
from bench.ranking.columns import BOARD, BoardColumn
from bench.ranking.tuning_gain import GainColumn
from bench.spec.columns import Column
from bench.spec.row import DECLARED, KEY
from bench.spec.suite import Suite

SHARE = {"minimum": 0, "maximum": 1}
COUNT = {"minimum": 0}
AMOUNT = {"minimum": 0}


def _field(name: str, kind: str, meaning: str, unit: str, constraints: Mapping[str, Any]) -> dict[str, Any]:
    made = {"name": name, "type": kind, "description": meaning}
    return made | ({"unit": unit} if unit else {}) | ({"constraints": dict(constraints)} if constraints else {})


def _row_field(column: Column) -> dict[str, Any]:
    return _field(column.name, column.type, column.meaning, column.unit, _limits(column) | ({} if column.empty else {"required": True}))


def _board_field(column: BoardColumn | GainColumn) -> dict[str, Any]:
    return _field(column.name, column.type, column.meaning, column.unit, _limits(column) | ({"required": True} if column.required else {}))


def _limits(column: Column | BoardColumn | GainColumn) -> dict[str, Any]:
    pattern = column.pattern if isinstance(column, Column) else ""
    limits: dict[str, Any] = {
        "minimum": column.least,
        "maximum": column.most,
        "pattern": pattern,
        "enum": list(getattr(column, "values", ())),
    }
    return {name: limit for name, limit in limits.items() if limit not in (None, "", [])}


SCHEMAS: dict[str, dict[str, Any]] = {
    "results": {"fields": [_row_field(column) for column in DECLARED.values()], "primaryKey": list(KEY), "missingValues": [""]},
    "leaderboard": {
        "fields": [_board_field(column) for column in BOARD],
        "primaryKey": ["track", "tuning", "method"],
        "missingValues": [""],
    },
    "tuned": {
        "fields": [_board_field(column) for column in tuning_gain.BOARD],
        "primaryKey": list(tuning_gain.CELL),
        "missingValues": [""],
    },
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
