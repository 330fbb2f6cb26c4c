"""The claim of SpaM where it costs a minute to see: slow, and a comparison of networks, not of arithmetic."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import methods

Split = list[tuple[Tensor, Tensor]]
SPARSITY = 0.95


def digits() -> tuple[Split, Split]:
    """Training batches and test batches of the 8x8 digits."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16.0
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return [(x[i], y[i]) for i in train.split(64)], [(x[test], y[test])]


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def accuracy(model: nn.Module, batches: Split) -> float:
    with torch.no_grad():
        return sum(float((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


@pytest.mark.slow
def test_opd_after_spam_beats_magnitude_after_a_prior_of_precision_one() -> None:
    """At 95 %, one-shot, on each of three seeds. The margins were 7, 6 and 31 points when this was written; 3 are asked for."""
    train, test = digits()
    for seed in range(3):
        ordinary, sparse = network(seed), network(seed)
        methods.train(ordinary, train, epochs=30, seed=seed, weight_decay=1 / 1400)
        posterior = methods.train(sparse, train, training="spam", epochs=30, seed=seed)
        methods.prune(ordinary, method="magnitude", sparsity=SPARSITY, seed=seed)
        methods.prune(sparse, train, method="opd", sparsity=SPARSITY, posterior=posterior, seed=seed)
        by_magnitude, by_opd = accuracy(ordinary, test), accuracy(sparse, test)
        print(f"seed {seed}: magnitude after map {by_magnitude:.3f}, opd after spam {by_opd:.3f}")
        assert by_opd > by_magnitude + 0.03


@pytest.mark.slow
def test_greedy_updates_from_the_start_do_not_switch_a_network_off() -> None:
    """No floor to speak of, no memory, an update after every epoch from the first: the cap on precisions holds it."""
    train, test = digits()
    for seed in range(3):
        model = network(seed)
        greedy = {"weight_decay": 1e-6, "burn_in": 0.0, "frequency": 1, "share": 1.0, "memory": 0.0}
        methods.train(model, train, training="spam", epochs=30, seed=seed, **greedy)
        assert accuracy(model, test) > 0.9
