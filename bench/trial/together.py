"""The networks of one job at its sparsities, trained and fine-tuned at the same time as one, if the user asks for it (`--stack`).

A small network leaves a GPU mostly idle: several of them as one take little more time than one. The numbers are those of training one by
one, up to rounding.
"""

from collections.abc import Callable
from contextlib import suppress

from bench.trial.network import Network
from bench.trial.workbench import Workbench


class Together:
    """Networks that are done together, in groups of as many as the user asked for: a group when the first network of it is asked for.

    A network that is not there, also because one of its group failed, must be done by itself. Each is handed out once and then forgotten.

    Args:
        bench: the workbench of a job. Without `--stack`, or with one sparsity, no network is there.
        made: makes the network of a sparsity.
        trains: whether it is to be trained.
    """

    def __init__(self, bench: Workbench, made: Callable[[float], Network], *, trains: bool = False) -> None:
        self._bench, self._made, self._trains = bench, made, trains
        self._pruned: dict[float, Network] = {}
        self._finetuned: dict[tuple[float, int], Network] = {}
        every, size = bench.job.sparsities, bench.job.environment.stack
        self._left = [group for start in range(0, len(every), size) if len(group := every[start : start + size]) > 1]

    def pruned(self, sparsity: float) -> Network | None:
        """The network of a sparsity before fine-tuning."""
        for group in [group for group in self._left if sparsity in group]:
            self._left.remove(group)
            with suppress(Exception, SystemExit):  # raised again, for its own sparsity, when they are done one by one
                self._do(group)
        return self._pruned.pop(sparsity, None)

    def finetuned(self, sparsity: float, epochs: int) -> Network | None:
        """The network of a sparsity after so many epochs of fine-tuning; `pruned` is asked before."""
        return self._finetuned.pop((sparsity, epochs), None)

    def _do(self, sparsities: list[float]) -> None:
        """Train and fine-tune the networks of some sparsities."""
        bench = self._bench
        networks = [self._made(sparsity) for sparsity in sparsities]
        trained = bench.together(networks) if self._trains else networks
        pruned = dict(zip(sparsities, map(bench.recalibrated, trained), strict=True))
        self._pruned |= pruned
        for epochs in sorted({point.finetune_epochs for point in bench.job.points} - {0}):
            tuned = bench.together([network.copied() for network in pruned.values()], epochs)
            self._finetuned |= {(s, epochs): network for s, network in zip(sparsities, tuned, strict=True)}
