"""Which curvature finds the weights that the exact Gauss-Newton diagonal keeps, and in how many seconds.

    python benchmarks/overlap.py [--dataset digits] [--architecture lenet5] [--data-root DIR] [--epochs 6] [--train-limit 20000]

A network is trained by `map`; of each curvature h, the weights that h θ² keeps at 95 % are compared with those of the exact one over
all the data. `trace`: Σ h over that of the exact one. The smallest figure is magnitude's, which looks at no data.
"""

import argparse
import time
from pathlib import Path

import torch

import methods
from bench import data
from bench.networks import build
from methods.core.modes import evaluating
from methods.curvature.compute import curvature

KEPT = 0.05
QUARTER = "a quarter of the data"
WAYS: dict[str, dict[str, object]] = {
    "ef": {"kind": "ef"},
    "mc": {"kind": "mc"},
    f"mc, {QUARTER}": {"kind": "mc", "quarter": True},
    "mc, 4 draws": {"kind": "mc", "draws": 4},
    f"mc, 4 draws, {QUARTER}": {"kind": "mc", "draws": 4, "quarter": True},
    f"mc, 16 draws, {QUARTER}": {"kind": "mc", "draws": 16, "quarter": True},
    f"ggn, {QUARTER}": {"kind": "ggn", "quarter": True},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--architecture", default="lenet5")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train-limit", type=int, default=20000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaded = data.load(
        options.dataset, options.data_root, validation=0.1, split_seed=0, cache=Path(".bench/data"), train_limit=options.train_limit
    )
    model = build.create(options.architecture, loaded.input_shape, loaded.classes)
    problem = methods.Problem(model, data.Batches(loaded.train.shuffled(0), 128, seed=0, shuffle=False))
    shuffled = data.Batches(loaded.train, 128, seed=0, shuffle=True)
    methods.fit(problem, methods.make("trainings", "map", {}), methods.Recipe(epochs=options.epochs), batches=shuffled)
    squares = torch.cat([w.detach().square().flatten() for w in problem.weights.values()])

    def kept(values: torch.Tensor) -> set[int]:
        return set(values.topk(int(KEPT * len(values))).indices.tolist())

    def flat(known: dict[str, object]) -> torch.Tensor:
        chosen = dict(known)
        samples = problem.samples // 4 if chosen.pop("quarter", False) else None
        with evaluating(model):
            found = curvature(problem, samples=samples, names=list(problem.weights), **chosen).diagonal  # type: ignore[arg-type]
        return torch.cat([h.flatten() for h in found.values()])

    exact = flat({"kind": "ggn"})
    wanted = kept(exact * squares)
    print(f"{'curvature':<40}{'overlap':>9}{'trace':>8}{'seconds':>9}")
    for way, known in WAYS.items():
        start = time.perf_counter()
        h = flat(known)
        took = time.perf_counter() - start
        print(f"{way:<40}{len(kept(h * squares) & wanted) / len(wanted):>9.3f}{float(h.sum() / exact.sum()):>8.2f}{took:>9.2f}", flush=True)
    print(f"{'magnitude':<40}{len(kept(squares) & wanted) / len(wanted):>9.3f}")


if __name__ == "__main__":
    main()
