"""Train or fine-tune the networks of a workbench: one, or several at the same time."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import methods
from bench import data
from bench.trial.network import Network
from bench.trial.training_cost import Tally
from methods import Posterior, Pruner

if TYPE_CHECKING:
    from bench.trial.workbench import Workbench


def fit(
    bench: "Workbench", networks: Sequence[Network], epochs: int, *, finetunes: bool, pruner: Pruner | None = None
) -> list[tuple[Posterior, Network]]:
    """Train networks in place, from the seed of the job.

    Args:
        bench: data, settings and seed.
        networks: several are trained as one, see `methods.fit_together`.
        epochs: the length of the training.
        finetunes: whether their trainings continue; otherwise they are new.
        pruner: makes cuts during the training.

    Returns:
        For each the posterior that the training leaves, and the network with what the training cost. Networks that are trained as one
        share its seconds.

    Raises:
        FloatingPointError: a loss is not finite.
        methods.NotAlike: they cannot be trained as one.
    """
    start, job = time.perf_counter(), bench.job
    seed, recipe = methods.derive(job.seed, "fine-tuning" if finetunes else "training"), job.recipe(epochs, finetunes=finetunes)
    tallies = [Tally(*bench.flops(network.problem)) for network in networks]
    with ExitStack() as stack:
        options: list[dict[str, Any]] = []
        for network, tally in zip(networks, tallies, strict=True):
            told = stack.enter_context(bench.events.training(network.problem, epochs if finetunes else 0))
            batches = data.training_batches(bench.dataset, job.protocol, seed)
            previous = network.problem.posterior if finetunes else None
            options.append({"batches": batches, "previous": previous, "pruner": pruner, "callbacks": [*told, bench.heartbeat, tally]})
        calls = f"'{bench.training.name}'" if pruner is None else f"'{pruner.criterion.name}' or '{bench.training.name}'"
        stack.enter_context(methods.unaltered_process(calls))
        each = [(network.problem, bench.training, recipe) for network in networks]
        if len(networks) == 1:
            states = [methods.fit(*each[0], **options[0])]
        else:
            states = methods.fit_together([methods.TrainingRun(*one, **own) for one, own in zip(each, options, strict=True)])
    seconds = bench.seconds_since(start) / len(networks)
    return [
        (state, replace(n, train_seconds=n.train_seconds + seconds, training_flops=n.training_flops + tally.flops))
        for state, n, tally in zip(states, networks, tallies, strict=True)
    ]
