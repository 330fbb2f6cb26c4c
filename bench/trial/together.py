"""The networks of one job at its sparsities, trained and fine-tuned at the same time as one, if the user asks for it (`--stack`).

A small network leaves a GPU mostly idle: several of them as one take little more time than one. The numbers are those of training one by
one, up to rounding.
"""

from collections.abc import Callable
from contextlib import suppress

from bench.trial.network import Network
from bench.trial.workbench import Workbench


class Together:
    """Networks that were done together. Those that are missing, also because one of them failed, must be done one by one.

    Args:
        bench: the workbench of a job. Without `--stack`, or with one sparsity, nothing is done; otherwise as many networks at a time
            as the user asked for.
        made: makes the network of a sparsity.
        trains: whether it is to be trained.

    Attributes:
        pruned: sparsity -> network before fine-tuning.
        finetuned: (sparsity, epochs of fine-tuning) -> network.
    """

    def __init__(self, bench: Workbench, made: Callable[[float], Network], *, trains: bool = False) -> None:
        self.pruned: dict[float, Network] = {}
        self.finetuned: dict[tuple[float, int], Network] = {}
        self._bench = bench
        every, size = bench.job.sparsities, bench.job.environment.stack
        for sparsities in (every[start : start + size] for start in range(0, len(every), size)):
            if len(sparsities) > 1:
                with suppress(Exception):  # raised again, for its own sparsity, when they are done one by one
                    self._done(sparsities, [made(sparsity) for sparsity in sparsities], trains)

    def _done(self, sparsities: list[float], networks: list[Network], trains: bool) -> None:
        """Train and fine-tune the networks of some sparsities."""
        bench = self._bench
        trained = bench.together(networks) if trains else networks
        self.pruned |= {s: bench.recalibrated(network) for s, network in zip(sparsities, trained, strict=True)}
        for epochs in sorted({point.finetune_epochs for point in bench.job.points} - {0}):
            tuned = bench.together([self.pruned[s].copied() for s in sparsities], epochs)
            self.finetuned |= {(s, epochs): network for s, network in zip(sparsities, tuned, strict=True)}
