"""Whether two measurements of the same row agree, and on what.

Everything but costs and provenance is compared. On the same release of torch and the same device a computation repeats itself
bit for bit, and the rows must be equal. Elsewhere sums are rounded otherwise, training carries that on, and samples near a
decision change sides: then counts must be equal, accuracies may differ by `TOLERANCE`, and what has no scale is not compared.
(Of 190 rows of suite `digits` computed with the plainest instructions in place of AVX-512, all differ in the last digits of their
likelihood, eleven in an accuracy, by 1.7 points at most.) But where a likelihood repeats itself to the last bit, so has the
computation, and its accuracy must be equal, whatever the devices are called.
"""

import dataclasses
from typing import Any

from bench.spec import COST_COLUMNS, Row

TOLERANCE = 0.05  # of accuracy, a fraction
MEASURED = tuple(f.name for f in dataclasses.fields(Row) if f.name != "error" and f.default is None and f.name not in COST_COLUMNS)
COUNTED = ("sparsity_reached", "prunable_weights", "kept_weights", "parameters", "parameters_kept", "flops")
JUDGED = ("accuracy", "accuracy_before_finetune", "dense_accuracy")
REPEATED = {"accuracy": "nll", "dense_accuracy": "dense_nll"}  # accuracy -> the likelihood of the same network


def same_machine(first: Row, second: Row) -> bool:
    """Whether both rows are of one release of torch and one device, so that they must be equal."""
    return (first.torch, first.device) == (second.torch, second.device)


def differences(expected: Row, got: Row, tolerance: float | None) -> list[str]:
    """What differs, as 'column: expected ..., got ...'. `tolerance` of accuracy; None where all must be equal.

    A measurement that `expected` lacks is not asked for.
    """
    names = ("status", *MEASURED) if tolerance is None else ("status", *COUNTED, *JUDGED)
    found: list[str] = []
    for name in names:
        a, b = getattr(expected, name), getattr(got, name)
        if name in REPEATED and getattr(expected, REPEATED[name]) == getattr(got, REPEATED[name]):
            if a != b:
                found.append(f"{name}: expected {_text(a)}, got {_text(b)}, though {REPEATED[name]} is the same to the last bit")
            continue
        if not (a is None or _agree(name, a, b, tolerance)):
            found.append(f"{name}: expected {_text(a)}, got {_text(b)}")
    return found


def _agree(name: str, a: Any, b: Any, tolerance: float | None) -> bool:
    if tolerance is None or b is None or a == b:
        return bool(a == b)
    if name == "status":  # whether a layer keeps a last weight may hang on rounding
        return {a, b} == {"ok", "collapsed"}
    return name in JUDGED and abs(a - b) <= tolerance


def _text(value: Any) -> str:
    return "nothing" if value is None else repr(value) if isinstance(value, float) else str(value)
