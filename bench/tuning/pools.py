"""The training configurations that searches choose from: one pool for each training, the same for all methods that train so.

The defaults, and points of a low-discrepancy sequence in the training's ranges. Draws depend on names and numbers alone, by hash,
on no library's generator: every release draws the same.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import methods
from methods import Range, Training, derive, ranges

MOST = 4  # draws for each place in a pool, at most
BROKEN = 0.9  # a member is replaced whose dense accuracy is below this share of the defaults'


@dataclass(frozen=True)
class Member:
    """One of a pool: which draw it is, its hyperparameters, and the keys of the networks trained with them, by tuning seed."""

    draw: int
    training: dict[str, Any]
    networks: tuple[str, ...]


def tunable(cls: type[methods.Configuration], fixed: dict[str, Any]) -> dict[str, Range]:
    """The hyperparameters a search may choose, and from what: those not fixed by the method's name, and not methods of their own."""
    return {name: allowed.searched for name, allowed in ranges(cls).items() if allowed.tuned and name not in fixed}


def drawn(training: Training, fixed: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """Configurations of a training without end: its defaults, then points spread evenly over its ranges; only the defaults where
    there is nothing to choose.

    The k-th point has the coordinates u_j = frac(shift_j + k α_j), a Kronecker sequence with a random shift: α_j = φ^-j, φ the root
    of φ^(d+1) = φ + 1 (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"). In d = 1 φ is the golden ratio.
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
    """`size` draws with their numbers: the defaults, and the first whose dense validation accuracy has not broken down.

    `accuracy` of a configuration's dense network; None where it is not trained yet: such a draw is taken, to be looked at again.
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
