"""The declaration of a column of results.csv. All columns are declared in `bench.spec.row`, each next to its field.

The CSV header, the checks of rows, the data package, merging, `verify` and the documentation are derived from these declarations.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a column is for.

    KEY: identifies the row. SETTING: known before anything is measured. COUNT: measured, equal on every machine.
    MEASURE: measured, with rounding that depends on the machine. COST: time or memory, which vary between two runs.
    WHERE: machine and packages, which determine the rounding. ORIGIN: other information about where the row comes from.
    """

    KEY = "key"
    SETTING = "setting"
    COUNT = "count"
    MEASURE = "measure"
    COST = "cost"
    WHERE = "where"
    ORIGIN = "origin"


@dataclass(frozen=True)
class Judged:
    """How `verify` compares a value with the one computed on another machine (see `bench.publishing.row_comparison`).

    `positive`: compare on a logarithmic scale; otherwise the value is a fraction. `pool`: the column that provides the noise, if it is
    not this one. `witnesses`: columns that are equal only if the network is the same.
    """

    positive: bool = False
    pool: str = ""
    witnesses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """The declaration of one column.

    `unit`: empty for texts and dimensionless numbers. `least`, `most`: bounds of a number, both included. `below`: an upper bound that is
    not included. `values`: the allowed texts. `pattern`: regular expression of a text. `json`: "object" for a text that is a JSON object,
    "numbers" for one whose values are finite numbers or null. `empty`: whether the cell may be empty. `since`: the schema that added the
    column. `judged`: how `verify` compares it, for measured numbers.
    """

    name: str
    type: str  # "string", "integer" or "number"
    meaning: str
    role: Role
    unit: str = ""
    least: float | None = None
    most: float | None = None
    below: float | None = None
    values: tuple[str, ...] = ()
    pattern: str = ""
    json: str = ""
    empty: bool = False
    since: int = 1
    judged: Judged | None = None


def column(meaning: str, role: Role, unit: str = "", *, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """The dataclass field of a column.

    Args:
        meaning: meaning of the column, for readers of the published files.
        role: what it is for.
        unit: unit of its numbers.
        default: default value of the field.
        more: further attributes of `Column`.
    """
    said = {"meaning": meaning, "role": role, "unit": unit, **more}
    return dataclasses.field(default=default, metadata={"column": said})


def declared(row: type) -> dict[str, Column]:
    """Name -> column, in the order of the fields. `row`: a dataclass whose fields are made by `column`."""
    return {field.name: _declared(field) for field in dataclasses.fields(row)}


def _declared(field: "dataclasses.Field[Any]") -> Column:
    annotation = str(field.type)
    kind = "number" if "float" in annotation else "integer" if "int" in annotation else "string"
    said = {"empty": "None" in annotation, **field.metadata["column"]}
    return Column(name=field.name, type=kind, **said)
