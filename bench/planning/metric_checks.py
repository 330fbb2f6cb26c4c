"""The checks of a plug-in's metric."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from bench.trial.metrics import Metric, Outputs, number_of
from methods.checking.clauses import Finding

SAMPLES, TOLERANCE = 200, 1e-6


def metric_findings(name: str, metric: Metric) -> list[Finding]:
    """What holds of a metric, and what does not.

    Args:
        name: its name.
        metric: the function.
    """
    questions: dict[str, Callable[[], str]] = {
        "returns a finite number or None": lambda: _finite(name, metric),
        "does not change the outputs": lambda: _unchanged(metric),
        "does not depend on the order of the samples": lambda: _order(name, metric),
    }
    return [_found(name, clause, question) for clause, question in questions.items()]


def _found(name: str, clause: str, question: Callable[[], str]) -> Finding:
    """The answer to a question: '' if the clause holds. Whatever the metric raises breaks it."""
    try:
        return Finding(name, clause, error=question())
    except Exception as error:  # a user's function may raise anything
        return Finding(name, clause, error=" ".join(f"{type(error).__name__}: {error}".split()))


def _cases() -> Iterator[tuple[str, Outputs]]:
    """Ordinary outputs, two classes, a class without samples, a single sample, and confidences of exactly 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for label, samples, classes, scale in (
        ("ten classes", SAMPLES, 10, 1.0), ("two classes", SAMPLES, 2, 1.0), ("a class without samples", 4, 10, 1.0),
        ("one sample", 1, 3, 1.0), ("certain predictions", SAMPLES, 10, 1e4),
    ):  # fmt: skip
        logits = scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
        yield label, Outputs(logits, logits.softmax(1), torch.randint(classes, (samples,), generator=generator))


def _finite(name: str, metric: Metric) -> str:
    for label, outputs in _cases():
        try:
            number_of(name, metric(outputs))
        except ValueError as error:
            return f"{error}, for {label}"
    return ""


def _unchanged(metric: Metric) -> str:
    _, outputs = next(_cases())
    before = replace(outputs, logits=outputs.logits.clone(), probabilities=outputs.probabilities.clone(), targets=outputs.targets.clone())
    metric(outputs)
    changed = [n for n in ("logits", "probabilities", "targets") if not torch.equal(getattr(before, n), getattr(outputs, n))]
    return f"it changed {changed[0]} in place: work on a copy" if changed else ""


def _order(name: str, metric: Metric) -> str:
    _, outputs = next(_cases())
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    first = number_of(name, metric(outputs))
    second = number_of(name, metric(Outputs(outputs.logits[order], outputs.probabilities[order], outputs.targets[order])))
    if first is None or second is None:
        return "" if first is second else f"it is {first}, and {second} in another order"
    return "" if abs(first - second) <= TOLERANCE * max(1.0, abs(first)) else f"it is {first:g}, and {second:g} in another order"
