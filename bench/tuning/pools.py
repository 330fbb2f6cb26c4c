"""Pools of training configurations for tuning: one per training, shared by all methods with this training.

A pool contains the default configuration and points of a low-discrepancy sequence in the ranges of the training's hyperparameters. The
points depend only on a hash of names and numbers, not on a library's random generator: every release draws the same points.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import methods
from methods import Range, Training, derive, ranges

MOST = 4  # largest number of draws per member of a pool
BROKEN = 0.9  # a configuration is replaced if its dense accuracy is below this fraction of the default's


@dataclass(frozen=True)
class Member:
    """A training configuration: number of its draw, hyperparameters, and the keys of its networks, one per tuning seed."""

    draw: int
    training: dict[str, Any]
    networks: tuple[str, ...]


def tunable(cls: type[methods.Configuration], fixed: dict[str, Any]) -> dict[str, Range]:
    """Hyperparameter -> range, for those that tuning may choose: declared as tuned, and not in `fixed` by the method's name."""
    return {name: allowed.searched for name, allowed in ranges(cls).items() if allowed.tuned and name not in fixed}


def drawn(training: Training, fixed: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """Draw configurations of a training: the default one, then an infinite sequence of points that cover the ranges evenly.

    The k-th point has the coordinates u_j = frac(shift_j + k α_j) in [0, 1), j = 1..d: a Kronecker sequence with a random shift, with
    α_j = φ^-j, where φ is the root of φ^(d+1) = φ + 1 (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"). For
    d = 1, φ is the golden ratio.

    Args:
        training: the training with its default hyperparameters.
        fixed: hyperparameters that the method's name sets; they are not drawn.
        seed: determines the shifts.

    Yields:
        Hyperparameters by name. Only the default configuration if all hyperparameters are fixed.
    """
    defaults = {name: getattr(training, name) for name in ranges(training)}
    yield defaults
    free = tunable(type(training), fixed)
    if not free:
        return
    phi = 2.0
    for _ in range(64):
        phi = (1.0 + phi) ** (1.0 / (len(free) + 1))
    shifts = [derive(seed, "pool", training.name, name) / 2**63 for name in free]
    for k in itertools.count(1):
        u = [(shift + k * phi ** -(j + 1)) % 1.0 for j, shift in enumerate(shifts)]
        yield {**defaults, **{name: allowed.at(x) for (name, allowed), x in zip(free.items(), u, strict=True)}}


def choose(
    draws: Iterator[dict[str, Any]], size: int, accuracy: Callable[[dict[str, Any]], float | None]
) -> list[tuple[int, dict[str, Any]]]:  # fmt: skip
    """Choose the members of a pool: the default configuration, and the first draws with a usable dense validation accuracy.

    A dense accuracy below `BROKEN` times the default's is not usable.

    Args:
        draws: configurations, the default one first.
        size: number of members.
        accuracy: dense validation accuracy of a configuration, or None if it is not trained yet. Such a draw is chosen for now; call
            this function again after training it.

    Returns:
        (number of the draw, configuration) of each member; fewer than `size` if too few of `MOST * size` draws are usable.
    """
    chosen: list[tuple[int, dict[str, Any]]] = []
    least = 0.0
    for k, hyperparameters in enumerate(itertools.islice(draws, MOST * size)):
        found = accuracy(hyperparameters)
        if k == 0:
            least = BROKEN * (found or 0.0)
        if k == 0 or found is None or found >= least:
            chosen.append((k, hyperparameters))
        if len(chosen) == size:
            break
    return chosen
