"""The description of the published CSV files: a Frictionless Data Package (v1) with a table schema for each file.

`SCHEMAS` contains type, unit, meaning and allowed values of every column. They come from the declarations in `bench.spec.row` and
`bench.ranking.columns`; those of tuned.csv are declared here.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from bench.publishing import contributions, verified
from bench.publishing.page import blocks
from bench.ranking import tuning_gain
from bench.ranking.columns import BOARD, BoardColumn, column_of
from bench.ranking.tuning_gain import GainColumn
from bench.spec.columns import Column
from bench.spec.row import DECLARED, KEY
from bench.spec.suite import Suite


def _field(name: str, kind: str, meaning: str, unit: str, constraints: Mapping[str, Any]) -> dict[str, Any]:
    made = {"name": name, "type": kind, "description": meaning}
    return made | ({"unit": unit} if unit else {}) | ({"constraints": dict(constraints)} if constraints else {})


def _row_field(column: Column) -> dict[str, Any]:
    return _field(column.name, column.type, column.meaning, column.unit, _limits(column) | ({} if column.empty else {"required": True}))


def _board_field(column: BoardColumn | GainColumn) -> dict[str, Any]:
    return _field(column.name, column.type, column.meaning, column.unit, _limits(column) | ({"required": True} if column.required else {}))


def _text_field(name: str, meaning: str) -> dict[str, Any]:
    return _field(name, "string", meaning, "", {"required": True})


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
    "contributions": {
        "fields": [_text_field(name, meaning) for name, meaning in contributions.COLUMNS.items()],
        "primaryKey": ["method", "tuning", "ablation"],
        "missingValues": [""],
    },
    "blocks": {
        "fields": [_board_field(column) for column in blocks.COLUMNS],
        "primaryKey": ["track", "tuning", "method", *blocks.KINDS, "sparsity"],
        "missingValues": [""],
    },
    "verified": verified.schema(),
}


def package(suite: Suite, files: Mapping[str, bytes]) -> str:
    """The datapackage.json of a leaderboard, computed from these files only.

    The schemas are files in schemas/, because all results/*.csv share one schema.

    Args:
        suite: the suite.
        files: path relative to the folder -> content; other files than CSVs are ignored.
    """
    resources = [_resource(path, files[path]) for path in sorted(files) if path.endswith(".csv")]  # each is read for itself
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
    """The name of a resource: only lower-case letters, digits, - . _ and /. A changed name ends in a digest, so that it is unique."""
    plain = re.sub(r"[^a-z0-9._/]+", "-", stem)
    return plain if plain == stem else f"{plain.strip('-')}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def _schema(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The schema of a file. A leaderboard has a column for each further sparsity."""
    if name != "leaderboard":
        return SCHEMAS[name]
    header = files["leaderboard.csv"].partition(b"\n")[0].decode().strip().split(",")
    return SCHEMAS[name] | {"fields": [_board_field(column_of(column)) for column in header]}


def schema_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The schemas that these CSVs need: path relative to the folder -> content."""
    used = {"results"} | {path.removesuffix(".csv") for path in files if path.endswith(".csv") and "/" not in path}
    return {f"schemas/{name}.json": dumps(_schema(name, files)).encode() for name in sorted(used)}


def dumps(content: Any) -> str:
    """Indented JSON with a line break at the end."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
