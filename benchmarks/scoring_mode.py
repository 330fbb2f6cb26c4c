"""SNIP and GraSP with running or batch statistics of batch norm: the validation accuracy of networks pruned at initialisation.

    python benchmarks/scoring_mode.py [--seeds 3] [--epochs 5] [--sparsities 0.95,0.98,0.99]

Networks with batch norm on digits (1,149 training, 288 validation samples of 8x8 pixels; the test samples are not read): the CIFAR
ResNet-20 and a VGG of five convolutions with 32 to 128 channels. Each is pruned at initialisation and then trained as `map` does.
The last column: share of weights whose score is exactly zero.

Validation accuracy in % (mean ± standard deviation over three seeds; CPU, one thread):

    network     scores                   95%           98%           99%    zero
    vgg         snip eval         98.7 ± 0.4    98.5 ± 1.1    95.9 ± 1.7   14.8%
    vgg         snip train        99.3 ± 0.3    98.3 ± 0.7    30.1 ± 7.0    0.0%
    vgg         grasp eval        96.8 ± 1.2    95.0 ± 0.7    90.6 ± 4.4   13.6%
    vgg         grasp train       99.0 ± 0.9    98.0 ± 0.2    95.9 ± 2.5    0.0%
    vgg         random            98.8 ± 0.5   88.3 ± 12.8   44.0 ± 20.2    0.0%
    resnet20    snip eval         98.4 ± 0.4    97.7 ± 0.5    94.7 ± 1.1   22.3%
    resnet20    snip train        98.0 ± 0.4    97.5 ± 1.2    96.9 ± 0.3    0.2%
    resnet20    grasp eval       79.6 ± 10.5   72.8 ± 12.1    73.4 ± 7.0   20.8%
    resnet20    grasp train       98.6 ± 0.6    97.7 ± 0.4    96.9 ± 1.0    0.1%
    resnet20    random            93.3 ± 7.1    67.0 ± 6.2    45.1 ± 8.1    0.0%

GraSP is better with the statistics of the batch in all six cases, for SNIP it depends on network and sparsity. The
defaults are those of the released codes: running statistics for SNIP, those of the batch for GraSP.
"""

import argparse
import itertools
import statistics
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import methods
from bench.networks import build

CASES = (("snip", "eval"), ("snip", "train"), ("grasp", "eval"), ("grasp", "train"), ("random", ""))
NETWORKS = ("vgg", "resnet20")
Samples = tuple[Tensor, Tensor]


def vgg() -> nn.Module:
    """Five convolutions with batch norm, a maximum after the second and the fourth, and one linear layer."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 0, 64, 128, 0, 128):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def samples(seed: int) -> tuple[Samples, Samples]:
    """Training and validation samples: the first 80 % of the data set, divided at random."""
    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0).float().view(-1, 1, 8, 8), torch.tensor(targets)
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(seed))
    return (x[order[:1149]], y[order[:1149]]), (x[order[1149:]], y[order[1149:]])


def zeros(model: nn.Module, batches: list[Samples], method: str, options: dict[str, Any]) -> float:
    """The share of weights whose score is exactly zero."""
    scores = torch.cat([s.flatten() for s in methods.scores(model, batches, method, **options).values()])
    return float((scores == 0).double().mean())


def accuracy(model: nn.Module, data: Samples) -> float:
    """The share of samples whose class is predicted."""
    model.eval()
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


def measure(network: str, method: str, mode: str, sparsity: float, seed: int, epochs: int) -> tuple[float, float]:
    """(validation accuracy, share of zero scores) of one network."""
    train, validation = samples(seed)
    batches = list(zip(train[0].split(64), train[1].split(64), strict=True))
    torch.manual_seed(seed)
    model = vgg() if network == "vgg" else build.create(network, (1, 8, 8), 10, False)
    options: dict[str, Any] = {"mode": mode} if mode else {}
    share = zeros(model, batches, method, options)
    mask = methods.prune(model, batches, method, sparsity=sparsity, seed=seed, **options)
    methods.train(model, batches, epochs=epochs, seed=seed, mask=mask)
    return accuracy(model, validation), share


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sparsities", default="0.95,0.98,0.99")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sparsities = [float(s) for s in options.sparsities.split(",")]
    print(f"{'network':<12}{'scores':<14}" + "".join(f"{f'{s:.0%}':>14}" for s in sparsities) + f"{'zero':>8}")
    for network, (method, mode) in itertools.product(NETWORKS, CASES):
        cells = []
        for sparsity in sparsities:
            found = [measure(network, method, mode, sparsity, seed, options.epochs) for seed in range(options.seeds)]
            reached = [100.0 * a for a, _ in found]
            cells.append(f"{statistics.mean(reached):.1f} ± {statistics.stdev(reached):.1f}" if len(reached) > 1 else f"{reached[0]:.1f}")
        share = statistics.mean(z for _, z in found)
        print(f"{network:<12}{f'{method} {mode}':<14}" + "".join(f"{c:>14}" for c in cells) + f"{share:>8.1%}", flush=True)


if __name__ == "__main__":
    main()
