"""What curvature costs, in epochs of ordinary training: one pass over the data each, side by side in one process.

    python benchmarks/curvature.py [--samples 1024] [--repeats 3] [--laplace]

The networks: a LeNet-5 on 28x28 images, a timm ResNet-18 of 8 to 64 channels on 32x32 images, a timm ViT of four blocks; random
data, batches of 128, one thread. `--laplace` adds laplace-torch's own backend on 256 samples (minutes).
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import bench.networks.classics  # noqa: F401  registers lenet5 with timm
import methods
from methods.core.interface import count_batches
from methods.core.modes import evaluating
from methods.curvature.compute import curvature

BASIC: Any = BasicBlock  # timm declares an instance where it takes the class
NETWORKS: dict[str, tuple[tuple[int, int, int], Callable[[], nn.Module]]] = {
    "lenet5": ((1, 28, 28), lambda: timm.create_model("lenet5", num_classes=10, in_chans=1, img_size=28)),
    "resnet18 8-64": ((3, 32, 32), lambda: ResNet(BASIC, (2, 2, 2, 2), num_classes=10, channels=(8, 16, 32, 64))),
    "vit 64x4": ((3, 32, 32), lambda: VisionTransformer(32, 8, num_classes=10, embed_dim=64, depth=4, num_heads=4)),
}
WAYS: dict[str, dict[str, object]] = {
    "diagonal ef": {"kind": "ef"},
    "diagonal mc": {"kind": "mc"},
    "diagonal mc, 4 draws": {"kind": "mc", "draws": 4},
    "diagonal ggn, exact": {"kind": "ggn"},
    "diagonal ggn, a quarter of the data": {"kind": "ggn", "quarter": True},
    "kronecker ef": {"kind": "ef", "structure": "kronecker"},
    "kronecker mc": {"kind": "mc", "structure": "kronecker"},
    "kronecker mc, A at 16 positions": {"kind": "mc", "structure": "kronecker", "positions": 16},
    "kronecker mc, reduce": {"kind": "mc", "structure": "kronecker", "sharing": "reduce"},
    "kronecker ggn, exact": {"kind": "ggn", "structure": "kronecker"},
}


def seconds(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def problem_of(name: str, samples: int) -> methods.Problem:
    """One of the networks, fresh and in the layout that the harness gives it, on random data in batches of 128."""
    shape, make = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    if sum(isinstance(m, nn.Conv2d) for m in model.modules()) > 1:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = torch.randn(samples, *shape), torch.randint(0, 10, (samples,))
    return methods.Problem(model, list(zip(x.split(128), y.split(128), strict=True)))


def laplace(problem: methods.Problem) -> float:
    """Seconds of one diagonal fit by laplace-torch with its default backend, scaled to all batches from two."""
    from laplace import DiagLaplace
    from torch.utils.data import DataLoader, TensorDataset

    x, y = (torch.cat(part) for part in zip(*list(problem.batches)[:2], strict=True))
    fit = DiagLaplace(problem.model, "classification")
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    return seconds(lambda: fit.fit(loader)) * count_batches(problem.batches) / 2


def measure(name: str, samples: int, repeats: int, with_laplace: bool) -> dict[str, list[float]]:
    """Way -> epochs of ordinary training that it takes, once for each repeat, the first a warm-up."""
    problem = problem_of(name, samples)
    training, recipe = methods.make("trainings", "map", {"lr": 0.01}), methods.Recipe(epochs=1)

    def fit(options: dict[str, object]) -> None:
        known = dict(options)
        part = samples // 4 if known.pop("quarter", False) else None
        with evaluating(problem.model):
            curvature(problem, samples=part, **known)  # type: ignore[arg-type]

    times: dict[str, list[float]] = {way: [] for way in [*WAYS, "seconds of an epoch"]}
    for _ in range(repeats + 1):
        epoch = seconds(lambda: methods.fit(problem, training, recipe))
        times["seconds of an epoch"].append(epoch)
        for way, chosen in WAYS.items():
            times[way].append(seconds(functools.partial(fit, chosen)) / epoch)
    if with_laplace:
        times["laplace-torch, DiagLaplace"] = [laplace(problem) / times["seconds of an epoch"][-1]] * 2
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of the networks, by comma")
    parser.add_argument("--laplace", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen_networks = options.networks.split(",")
    print(f"{'epochs of ordinary training':<38}" + "".join(f"{n:>16}" for n in chosen_networks))
    table: dict[str, list[float]] = {}
    for name in chosen_networks:
        times = measure(name, options.samples, options.repeats, options.laplace)
        for way, values in times.items():
            table.setdefault(way, []).append(statistics.median(values[1:]))  # the first is a warm-up
    for way, row in table.items():
        print(f"{way:<38}" + "".join(f"{value:>16.2f}" for value in row), flush=True)


if __name__ == "__main__":
    main()
