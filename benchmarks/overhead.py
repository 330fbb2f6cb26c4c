"""What the harness costs over the bare arithmetic: the same trainings and scorings, side by side in one process.

    python benchmarks/overhead.py [--epochs 30] [--repeats 3]

Bare: plain PyTorch loops (permute, index, forward, backward, step, re-mask) for every training that the pipeline does, and the
criteria's scores. Harness: planning, training with hooks and prior, scoring, cutting, checking, measuring on the
test split, storing. One thread, one process; prints the seconds of both and their ratio, for each architecture of suite `digits`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import methods
from bench import data
from bench.execution import pipeline
from bench.execution.executors import Inline
from bench.networks import build
from bench.planning import catalogue
from bench.planning.plan import plan
from bench.planning.request import Request, narrowed
from bench.spec.choices import Narrowing
from bench.spec.protocol import Protocol
from bench.spec.suite import Suite, load_suite
from bench.storage.rows import Store
from bench.trial import loading
from bench.trial.job import Environment

METHODS = "random,magnitude,obd,snip,random_init"


def harness(suite: Suite, folder: Path) -> float:
    """Seconds of the pipeline, from the plan to the last row in the store."""
    start = time.perf_counter()
    request = Request(suite, catalogue.select_methods(METHODS), Environment("cpu", None, folder))
    store = Store(f"sqlite:///{folder}/store.db")
    made = plan(request, store)
    pipeline.run(made, store, Inline())
    rows = pipeline.collect(made, store)
    assert all(row.status in ("ok", "collapsed") for row in rows), [row.error for row in rows if row.error]
    return time.perf_counter() - start


def train(model: torch.nn.Module, split: data.Split, protocol: Protocol, epochs: int, mask: Any = None) -> None:
    """A plain training loop of the protocol's length, batch size and optimiser."""
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=1e-3, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * -(-len(split) // protocol.batch_size)))
    inputs = split.read()
    masked = [(p, mask[n]) for n, p in model.named_parameters() if mask is not None and n in mask]
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(split)).split(protocol.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), split.targets[index]).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for p, m in masked:
                    p.mul_(m)


def network(architecture: str, shape: tuple[int, ...]) -> torch.nn.Module:
    """An initial network in the memory layout the harness gives it."""
    model = build.create(architecture, shape, 10)
    convolutional = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) > 1
    if convolutional:
        model.to(memory_format=torch.channels_last)
    return model


def bare(suite: Suite, folder: Path) -> float:
    """Seconds of the same trainings and scorings without the harness."""
    (block,) = suite.blocks
    (architecture,) = block.architectures
    protocol = suite.protocol(block.dataset, architecture)
    split = loading.load_data(block.dataset, protocol, Environment("cpu", None, folder)).train
    batches = data.Batches(split, protocol.batch_size, shuffle=False)
    shape = split.input_shape
    start = time.perf_counter()
    for _ in suite.seeds:
        dense = network(architecture, shape)
        train(dense, split, protocol, suite.epochs)
        chosen = catalogue.select_methods(METHODS)
        after = [m for m in chosen if m.stage != "init"]
        for method in after:
            methods.score(methods.Problem(dense, batches), method.make_criterion())
        for length in suite.finetune_epochs:
            train(dense, split, protocol, length)
            for _ in suite.sparsities:
                for _ in after:
                    train(dense, split, protocol, length, methods.full_mask(dense))
        for method in (m for m in chosen if m.stage == "init"):
            for _ in suite.sparsities:
                model = network(architecture, shape)
                methods.score(methods.Problem(model, batches), method.make_criterion())
                for length in (suite.epochs, *suite.finetune_epochs):
                    train(model, split, protocol, length, methods.full_mask(model))
    return time.perf_counter() - start


def main() -> None:
    """Run both in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'architecture':<20}{'bare s':>10}{'harness s':>12}{'ratio':>8}   (medians of {options.repeats})")
    for architecture in ("mlp", "lenet5", "vit_micro_patch4"):
        suite = narrowed(
            load_suite("digits"),
            Narrowing(datasets=("digits",), architectures=(architecture,), seeds=(0,), sparsities=(0.9, 0.99), epochs=options.epochs),
        )
        times = []
        for _ in range(options.repeats + 1):
            with tempfile.TemporaryDirectory() as folder:
                times.append((bare(suite, Path(folder)), harness(suite, Path(folder))))
        plain, full = (statistics.median(column) for column in zip(*times[1:], strict=True))  # the first is a warm-up
        ratio = statistics.median(b / a for a, b in times[1:])
        print(f"{architecture:<20}{plain:>10.2f}{full:>12.2f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
