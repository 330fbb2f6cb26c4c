"""What training by the marginal likelihood costs: SpaM's seconds over those of ordinary training, side by side in one process.

    python benchmarks/training.py [--samples 4096] [--epochs 20] [--repeats 3] [--networks lenet5]

The networks and data of `benchmarks/curvature.py`; every variant trains as long, and the final posterior is part of its time.
"""

import argparse
import statistics

import torch
from curvature import problem_of, seconds

import methods

VARIANTS: dict[str, dict[str, object]] = {
    "every epoch, a quarter of the data (default)": {},
    "every fifth epoch, a quarter of the data": {"frequency": 5},
    "every fifth epoch, all the data": {"frequency": 5, "share": 1.0, "memory": 0.0},
    "kronecker, parameter-wise": {"structure": "kronecker"},
    "kronecker, unit-wise": {"structure": "kronecker", "prior": "unit"},
    "kronecker, layer-wise": {"structure": "kronecker", "prior": "layer"},
}


def train(name: str, samples: int, epochs: int, training: str, options: dict[str, object]) -> float:
    """Seconds of one training from a fresh network."""
    problem, recipe = problem_of(name, samples), methods.Recipe(epochs=epochs)
    chosen = methods.make("trainings", training, {"lr": 0.01, **options})
    return seconds(lambda: methods.fit(problem, chosen, recipe))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", default="lenet5", help="some of the networks, by comma")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks.split(","):
        ratios: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.repeats):
            plain = train(name, options.samples, options.epochs, "map", {})
            for variant, chosen in VARIANTS.items():
                ratios[variant].append(train(name, options.samples, options.epochs, "spam", chosen) / plain)
        for variant, values in ratios.items():
            print(f"{name:<16}{variant:<48}{statistics.median(values):>6.2f}", flush=True)


if __name__ == "__main__":
    main()
