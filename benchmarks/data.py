"""What batches cost when images stay bytes: seconds over those of whole float32 tensors, side by side in one process.

    python benchmarks/data.py [--images 50000] [--side 32] [--repeats 9] [--threads 1]

Whole: all images standardised once, a batch is one `index_select`, with "crop" and "flip" one gather more. Bytes: images uint8, a batch is
selected, converted and standardised; in memory, memory-mapped, and memory-mapped with the next batches read ahead by threads. All give
the same batches, which is checked first. An epoch of batches alone, and an epoch of training of a network of two convolutions. Prints the
medians of alternating repeats, the median ratio to whole tensors, and the memory of the data.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench import data
from bench.data import split
from bench.data.batches import _window

SIZE = 128  # examples per batch
AUGMENT: dict[str, tuple[str, ...]] = {"": (), " with crop and flip": ("crop", "flip")}
Epoch = Callable[[tuple[str, ...]], Iterable[tuple[Tensor, Tensor]]]


def ways(raw: Tensor, targets: Tensor, mapped: Tensor) -> dict[str, Epoch]:
    """Name -> the batches of a new epoch, for the augmentations."""
    mean, std = torch.full((raw.shape[1], 1, 1), 120.0), torch.full((raw.shape[1], 1, 1), 60.0)
    index = torch.arange(len(raw))
    whole = data.Split.of(raw.float().sub_(mean).div_(std), targets)

    def of_floats(augment: tuple[str, ...]) -> Iterable[tuple[Tensor, Tensor]]:
        batches = data.Batches(whole, SIZE, augment=augment)  # for its order and draws alone
        order = torch.randperm(len(raw), generator=batches._generator("order", "0"))
        pad, draws = batches._draw("0") if augment else (0, index)
        for rows, drawn in zip(order.split(batches._sizes), draws.split(batches._sizes), strict=True):
            inputs = whole.raw.index_select(0, rows)
            yield (_window(inputs, pad, drawn) if augment else inputs), targets.index_select(0, rows)

    def of_bytes(part: data.Split, share: float) -> Epoch:
        def epoch(augment: tuple[str, ...]) -> Iterable[tuple[Tensor, Tensor]]:
            split.HOST_SHARE = share
            return data.Batches(part, SIZE, augment=augment)

        return epoch

    in_memory = data.Split(raw, index, targets, mean, std)
    in_file = data.Split(mapped, index, targets, mean, std, mapped=True)
    return {
        "whole float32 tensors": of_floats,
        "bytes in memory": of_bytes(in_memory, 1e9),
        "bytes, memory-mapped": of_bytes(in_file, 1e9),
        "bytes, memory-mapped, read ahead": of_bytes(in_file, 0.0),
    }


def reading(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """An epoch of batches without training."""
    for _ in batches:
        pass


def training(channels: int) -> Callable[[Iterable[tuple[Tensor, Tensor]]], None]:
    """An epoch of training of a small network."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 10)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return epoch


def main() -> None:
    """Run all ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 50_000), ("side", 32), ("repeats", 9), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(256, (options.images, 3, options.side, options.side), dtype=torch.uint8, generator=generator)
    targets = torch.randint(10, (options.images,), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        save_file({"images": raw}, Path(folder) / "images")
        with safe_open(Path(folder) / "images", framework="pt") as stored:
            every = ways(raw, targets, stored.get_tensor("images"))
        for augment in AUGMENT.values():
            for batches in zip(*(way(augment) for way in every.values()), strict=True):
                assert all(x.equal(batches[0][0]) and y.equal(batches[0][1]) for x, y in batches)
        megabytes = raw.nbytes / 1e6
        print(f"{options.images} images 3 x {options.side} x {options.side}, whole: {4 * megabytes:.0f} MB, bytes: {megabytes:.0f} MB")
        works: dict[str, Callable[[Iterable[tuple[Tensor, Tensor]]], None]] = {"batches": reading, "training": training(3)}
        for title, work in works.items():
            for said, augment in AUGMENT.items():
                times: dict[str, list[float]] = {name: [] for name in every}
                for repeat in range(options.repeats + 1):
                    for name in (list(every), list(every)[::-1])[repeat % 2]:
                        start = time.perf_counter()
                        work(every[name](augment))
                        times[name].append(time.perf_counter() - start)
                base = times["whole float32 tensors"][1:]  # the first repeat is a warm-up
                for name, seconds in times.items():
                    ratio = statistics.median(b / a for a, b in zip(base, seconds[1:], strict=True))
                    print(f"{title + said:<32}{name:<36}{statistics.median(seconds[1:]):>8.3f} s{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
