"""WoodFisher beside the figures its paper's case has in the literature, and what it costs on a ResNet-18.

    python benchmarks/woodfisher.py --data-root DIR [--seeds 3] [--split test] [--options damping=1e-3,block=256]
    python benchmarks/woodfisher.py --resnet18

The case: an MLP 784-40-20-10 without biases on MNIST, trained weakly by plain SGD to about 94 %, pruned in one shot, not
fine-tuned. `--options` replaces the three updates and the several steps by configurations of one's own, `--split validation`
is what defaults are chosen by. `--resnet18` scores a timm ResNet-18 of 11 million weights on 32x32 images of noise.
"""

import argparse
import copy
import itertools
import resource
import statistics
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

import methods
from bench import data

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
PUBLISHED = {"magnitude": (92.9, 90.3, 83.6, 32.3), "woodfisher": (93.6, 91.7, 85.5, 38.3)}  # dense 93.97
WAYS = ("update=joint", "update=summed", "update=none", "steps=5,block=128")
WEIGHT = methods.make("granularities", "weight", {})


def trained(split: data.Split, seed: int, epochs: int, lr: float, batch_size: int) -> nn.Module:
    """The MLP after plain SGD at a constant learning rate."""
    torch.manual_seed(seed)
    sizes = (784, 40, 20, 10)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b, bias=False), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers[:-1])
    batches = data.Batches(split, batch_size, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, split: data.Split) -> float:
    """In percent."""
    return 100.0 * float((model(split.read()).argmax(1) == split.targets).float().mean())


def parsed(options: str) -> dict[str, object]:
    """What "damping=1e-3,block=256" says."""
    found: dict[str, object] = {}
    for key, value in (pair.split("=") for pair in options.split(",") if pair):
        found[key] = int(value) if value.isdigit() else float(value) if value[0].isdigit() else value
    return found


def published_case(options: argparse.Namespace) -> None:
    """Print accuracies, and the differences from magnitude."""
    loaded = data.load("mnist", options.data_root, validation=1 / 12, split_seed=0, cache=Path(".bench/data"))
    split = loaded.test if options.split == "test" else loaded.validation
    ways = {"magnitude": methods.make("criteria", "magnitude", {})}
    ways |= {o: methods.make("criteria", "woodfisher", parsed(o)) for o in options.options}
    table: dict[str, list[list[float]]] = {way: [] for way in ways}
    dense, spent = [], dict.fromkeys(ways, 0.0)
    for seed in range(options.seeds):
        model = trained(loaded.train, seed, options.epochs, options.lr, options.batch_size)
        dense.append(accuracy(model, split))
        batches = data.Batches(loaded.train.shuffled(seed), 128, shuffle=False)
        for way, criterion in ways.items():
            start = time.perf_counter()
            problem = methods.Problem(model, batches, seed=seed)
            scores = methods.score(problem, criterion) if methods.scored_once(criterion) else None
            row = []
            for sparsity in SPARSITIES:
                pruned = methods.Problem(copy.deepcopy(model), batches, seed=seed)
                methods.cut(pruned, criterion, WEIGHT, sparsity, scores)
                row.append(accuracy(pruned.model, split))
            table[way].append(row)
            spent[way] += time.perf_counter() - start
    print(f"dense {statistics.mean(dense):.2f} % on the {options.split} split, {options.seeds} seeds (published 93.97)")
    print(f"{'mean ± standard deviation':<44}" + "".join(f"{s:>15.0%}" for s in SPARSITIES) + f"{'seconds':>9}")
    for way, rows in table.items():
        columns = list(zip(*rows, strict=True))
        cells = [f"{statistics.mean(c):.1f} ± {statistics.stdev(c) if len(c) > 1 else 0.0:.1f}" for c in columns]
        print(f"{way:<44}" + "".join(f"{c:>15}" for c in cells) + f"{spent[way] / options.seeds:>9.1f}")
    for way, figures in PUBLISHED.items():
        print(f"{'published, ' + way:<44}" + "".join(f"{v:>15}" for v in figures))
    print("difference from magnitude, seed by seed")
    for way, rows in table.items():
        if way != "magnitude":
            gains = [[a - b for a, b in zip(row, base, strict=True)] for row, base in zip(rows, table["magnitude"], strict=True)]
            means = [statistics.mean(c) for c in zip(*gains, strict=True)]
            print(f"{way:<44}" + "".join(f"{v:>+15.1f}" for v in means))
    gaps = [b - a for a, b in zip(*PUBLISHED.values(), strict=True)]
    print(f"{'published':<44}" + "".join(f"{v:>+15.1f}" for v in gaps))


def resnet18(options: argparse.Namespace) -> None:
    """Print seconds and the peak of the resident memory, of a scoring and of a cut with its update."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10)
    x, y = torch.randn(options.samples, 3, 32, 32), torch.randint(0, 10, (options.samples,))
    problem = methods.Problem(model, list(zip(x.split(128), y.split(128), strict=True)))
    for chosen in options.options:
        criterion = methods.make("criteria", "woodfisher", {"samples": options.samples, **parsed(chosen)})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        start = time.perf_counter()
        scores = methods.score(problem, criterion)
        scored = time.perf_counter()
        methods.cut(methods.Problem(copy.deepcopy(model), problem.batches), criterion, WEIGHT, 0.9, scores)
        cut = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        side = max(f.shape[1] for f in scores.state.values()) if scores.state else 0
        print(
            f"{chosen}: {sum(w.numel() for w in problem.weights.values())} weights, {options.samples} samples, blocks of {side}: "
            f"scored in {scored - start:.0f} s, cut in {cut - scored:.0f} s, peak {peak:.1f} GB ({before:.1f} before)",
            flush=True,
        )


def main() -> None:
    """Run the case asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--resnet18", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1024, help="of --resnet18")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--options", nargs="+", default=None, help="configurations of woodfisher, see WAYS where not given")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.options = options.options or (WAYS[:1] if options.resnet18 else WAYS)
    (resnet18 if options.resnet18 else published_case)(options)


if __name__ == "__main__":
    main()
