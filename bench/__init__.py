"""A benchmark of neural-network pruning methods.

    import bench
    rows = bench.run(methods=["magnitude", "spam"], datasets=["digits"], architectures=["mlp"], trials=0)
    bench.leaderboard(rows)
    bench.plot(rows, "accuracy")
    bench.compare(rows, "magnitude", "spam")

Importing it costs nothing: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import compare, leaderboard, plot, read, run, tradeoff
    from bench.spec.errors import UserError
    from bench.spec.row import Row
    from bench.spec.suite import Suite, load_suite
    from bench.trial.metrics import Outputs, metric

_HOMES = {
    "run": "bench.api", "leaderboard": "bench.api", "plot": "bench.api", "compare": "bench.api", "read": "bench.api",
    "Row": "bench.spec.row", "Suite": "bench.spec.suite", "load_suite": "bench.spec.suite", "UserError": "bench.spec.errors",
    "tradeoff": "bench.api", "Outputs": "bench.trial.metrics", "metric": "bench.trial.metrics",
}  # fmt: skip
__all__ = [
    "Outputs", "Row", "Suite", "UserError", "compare", "leaderboard", "load_suite", "metric", "plot", "read", "run", "tradeoff",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("razorbench")
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
