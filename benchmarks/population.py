"""Time of training several small networks as one (`methods.fit_together`) and one by one, on a GPU if there is one.

    python benchmarks/population.py [--device cuda] [--architecture lenet5] [--networks 2,4,8,16]

Prints, for each number of networks, seconds per epoch of both ways, side by side in one process, and their ratio. On a CPU one by one is
faster: the option `--stack` of the command line is for a GPU.
"""

import argparse
import statistics
import time

import torch

import methods
from bench import data
from bench.networks import build
from bench.trial.device import synchronize

REPEATS = 5


def runs(architecture: str, dataset: data.Dataset, count: int) -> list[methods.TrainingRun]:
    """Trainings of `count` networks with seeds of their own."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = build.create(architecture, dataset.input_shape, dataset.classes).to(dataset.train.device)
        problem = methods.Problem(model, data.Batches(dataset.train, 128, seed=seed), seed=seed)
        made.append(methods.TrainingRun(problem, methods.make("trainings", "map", {}), methods.Recipe(epochs=1)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--architecture", default="lenet5")
    parser.add_argument("--networks", default="2,4,8,16", type=lambda text: [int(k) for k in text.split(",")])
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = data.load("digits", None).to(options.device)
    print(f"{options.architecture} on digits, {options.device}, {REPEATS} repeats in turns, median seconds of one epoch of all networks")
    print(f"{'networks':>8}  {'one by one':>10}  {'as one':>8}  {'ratio':>6}")
    for count in options.networks:
        seconds: dict[str, list[float]] = {"alone": [], "together": []}
        for _ in range(REPEATS + 1):  # the first one warms up
            for way, spent in seconds.items():
                trainings = runs(options.architecture, dataset, count)
                start = time.perf_counter()
                if way == "together":
                    methods.fit_together(trainings)
                else:
                    for training in trainings:
                        methods.fit_run(training)
                synchronize(torch.device(options.device))
                spent.append(time.perf_counter() - start)
        alone, together = (statistics.median(spent[1:]) for spent in seconds.values())
        print(f"{count:8d}  {alone:10.3f}  {together:8.3f}  {alone / together:5.2f}x")


if __name__ == "__main__":
    main()
