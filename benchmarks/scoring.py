"""What pruning costs by each criterion, in epochs of ordinary training: scoring, cutting to 95 % and compensating, side by side.

    python benchmarks/scoring.py [--samples 8192] [--repeats 3] [--criteria magnitude,obd,...]

A LeNet-5 on 28x28 and a timm ResNet-18 of 8 to 64 channels on 32x32 images; random data, batches of 128, one thread. Criteria that read
a fixed number of samples cost less of an epoch on more data. Criteria of output channels are cut to 50 %. `-`: not defined for the network.
"""

import argparse
import copy
import functools
import statistics
from dataclasses import replace

import torch
from curvature import NETWORKS, problem_of, seconds

import methods


def measure(problem: methods.Problem, method: methods.Method, repeats: int) -> float | None:
    """Median seconds of one cut to 95 % (of channels: to 50 %), after one to warm up; None where the criterion is not defined for it."""
    criterion = method.make_criterion()
    granularity = methods.get_granularity((criterion.granularities or ("weight",))[0])
    sparsity = 0.5 if granularity.compacts else 0.95  # few networks can lose 95 % of their channels
    if criterion.unsupported(problem) is not None:
        return None
    times = []
    for _ in range(repeats + 1):
        own = replace(problem, model=copy.deepcopy(problem.model))
        times.append(seconds(functools.partial(methods.cut, own, criterion, granularity, sparsity)))
    return statistics.median(times[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--criteria", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = (
        options.criteria.split(",")
        if options.criteria
        else [*(n for n in methods.names("criteria") if methods.get(n).schedule is None), "snip_iterative"]
    )
    networks = ["lenet5", "resnet18 8-64"]
    assert set(networks) <= set(NETWORKS)
    columns = []
    for name in networks:
        problem = problem_of(name, options.samples)
        training, recipe = methods.make("trainings", "map", {"lr": 0.01}), methods.Recipe(epochs=1)
        epochs = [seconds(functools.partial(methods.fit, problem, training, recipe)) for _ in range(options.repeats + 1)]
        epoch = statistics.median(epochs[1:])
        found = [measure(problem, methods.get(c), options.repeats) for c in chosen]
        columns.append(["-" if s is None else f"{s / epoch:.2f}" for s in found] + [f"{epoch:.2f} s"])
    print(f"{'epochs of ordinary training':<30}" + "".join(f"{n:>16}" for n in networks))
    for label, *values in zip([*chosen, "an epoch"], *columns, strict=True):
        print(f"{label:<30}" + "".join(f"{v:>16}" for v in values))


if __name__ == "__main__":
    main()
