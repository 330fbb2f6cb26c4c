"""The data and settings of one job, and the steps that turn a network into a measured one: train, score, cut, measure.

`bench.trial.stages` puts the steps in order. Only `Workbench.measure` reads the test split, once for each row, and not at all
if the job is measured on validation data.
"""

import dataclasses
import time
from dataclasses import replace
from operator import is_

import torch
from torch import Tensor, nn

import methods
from bench import data
from bench.networks import build, plugins, weights
from bench.storage.checkpoints import Networks
from bench.trial import architecture, cost, device, metrics
from bench.trial.events import Events
from bench.trial.fitting import fit
from bench.trial.flops import layer_flops
from bench.trial.heartbeat import Heartbeat
from bench.trial.job import Job
from bench.trial.loading import load_data
from bench.trial.network import Measurement, Network, posterior_to
from bench.trial.training_cost import FACTOR
from methods import Posterior, Problem, Pruner, Schedule


class Workbench:
    """The data, settings and seeds of one job, and the steps that its networks go through.

    A step takes a `Network` and returns one. The workbench itself does not change, except for the progress that it reports.

    Args:
        job: the job. Its plug-ins are loaded, and its data set is loaded or downloaded.
    """

    def __init__(self, job: Job) -> None:
        for plugin in job.environment.plugins:
            metrics.of_module(plugins.load(plugin).module)
        architecture.check_source(job)
        self.job = job
        self.device = torch.device(job.environment.device)
        self.dataset = load_data(job.dataset, job.protocol, job.environment)
        architecture.check_data(job, self.dataset.fingerprint)
        self.training = methods.make("trainings", job.training, job.setting.training)
        self.granularity = methods.get_granularity(job.granularity)
        self.cost = None if job.match == "weights" else cost.cost(job.match, self.initial(), self.dataset.input_shape)
        self.networks = Networks(job.environment.cache / "networks")
        self.heartbeat = Heartbeat(job.environment.progress)
        self.events = Events(job)
        self._memory = device.Memory(self.device)
        self._effective: tuple[list[Tensor], float | None] = ([], None)  # of the last masks

    def problem(self, model: nn.Module, posterior: Posterior | None = None) -> Problem:
        """What methods see of a network: training data in one fixed order, without augmentation, and no other data.

        A protocol with a budget of calibration samples shows the first ones in the order of this seed, to every method the same.
        """
        scoring = self.dataset.train.shuffled(methods.derive(self.job.seed, "scoring"), self.job.protocol.calibration)
        batches = data.Batches(scoring, self.job.protocol.batch_size, seed=0, shuffle=False)
        include, exclude = self.job.protocol.include, self.job.protocol.exclude
        problem = Problem(model, batches, seed=self.job.seed, posterior=posterior, include=include, exclude=exclude)
        return replace(problem, granularity=self.granularity)

    def initial(self, purpose: str = "initial weights") -> nn.Module:
        """The network before training.

        Args:
            purpose: which random draw. "initial weights" is the same for every method at this seed, and may be pretrained or a
                checkpoint; any other purpose draws new random weights.
        """
        architecture.check_source(self.job)
        given = purpose == "initial weights"
        pretrained = self.job.protocol.pretrained and given
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(methods.derive(self.job.seed, purpose))
            model = build.create(self.job.architecture, self.dataset.input_shape, self.dataset.classes, pretrained)
        if given and self.job.protocol.weights is not None:
            weights.load(model, self.job.protocol.weights, f"architecture '{self.job.architecture}'")
        # Channels last is faster for convolutional networks, and slower if the only convolution cuts the image into patches.
        convolutional = sum(isinstance(m, nn.Conv2d) for m in model.modules()) > 1
        if convolutional:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.device)

    def untrained(self) -> Network:
        """The network that every method starts from at this seed."""
        return Network(self.problem(self.initial()))

    def loaded_dense(self) -> Network:
        """The dense network that another job has saved. If it is missing, because it could not be written or was damaged, it is trained.

        Raises:
            RuntimeError: another job could not train it.
        """
        failure = self.networks.failed(self.job.network)
        if failure and not self.networks.has(self.job.network):
            raise RuntimeError(f"its dense network failed: {failure}")
        try:
            state, posterior, facts = self.networks.load(self.job.network)
        except FileNotFoundError:
            return self.saved_dense(self.train(self.untrained()))
        model = self.initial()
        model.load_state_dict(state)
        problem = self.problem(model, posterior_to(posterior, self.device))
        return Network(
            problem, train_seconds=facts["train_seconds"], training_flops=facts["training_flops"], dense_at_chance=facts["at_chance"],
        )  # fmt: skip

    def saved_dense(self, network: Network) -> Network:
        """Save a trained dense network for other jobs, and note whether it is at chance on the validation data."""
        problem, validation = network.problem, self.dataset.validation or self.dataset.train
        assert problem.posterior is not None
        logits = metrics.logits_of(problem.model, validation)
        at_chance = metrics.at_chance(logits, validation.targets)
        facts = {
            "train_seconds": network.train_seconds, "training_flops": network.training_flops, "at_chance": at_chance,
            "validation_accuracy": metrics.hit_rate(logits, validation.targets),
        }  # fmt: skip
        self.networks.save(self.job.network, problem.model.state_dict(), problem.posterior, facts)
        return replace(network, dense_at_chance=at_chance)

    def pruner(self, criterion: methods.Criterion, schedule: Schedule, sparsity: float) -> Pruner:
        """The cuts of a schedule, for `train` or `finetune` to make."""
        return Pruner(criterion, self.granularity, schedule, sparsity, self.cost)

    def train(self, network: Network, pruner: Pruner | None = None) -> Network:
        """Train in place for the protocol's epochs. The result has the posterior of this training.

        Args:
            network: an untrained network.
            pruner: makes cuts during the training; None trains under the mask as it is.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        ((state, trained),) = fit(self, [network], self.job.protocol.epochs, finetunes=False, pruner=pruner)
        return trained.with_problem(posterior=state)

    def finetune(self, network: Network, epochs: int, pruner: Pruner | None = None) -> Network:
        """Fine-tune in place. The posterior stays that of the training before.

        Args:
            network: a trained network.
            epochs: the length of fine-tuning.
            pruner: makes cuts during fine-tuning; None trains under the mask as it is.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        return fit(self, [network], epochs, finetunes=True, pruner=pruner)[0][1]

    def together(self, networks: list[Network], finetune_epochs: int | None = None) -> list[Network]:
        """Train new networks in place as one, or fine-tune trained ones; up to rounding as `train` and `finetune` do one by one.

        Args:
            networks: the networks.
            finetune_epochs: the length of fine-tuning; None to train.

        Raises:
            methods.NotAlike: they cannot be trained as one.
            FloatingPointError: a loss is not finite.
        """
        finetunes = finetune_epochs is not None
        made = fit(self, networks, self.job.protocol.epochs if finetune_epochs is None else finetune_epochs, finetunes=finetunes)
        return [network if finetunes else network.with_problem(posterior=state) for state, network in made]

    def scored(self, network: Network, criterion: methods.Criterion) -> tuple[methods.Scores | None, Network]:
        """Score a network once for all sparsities.

        Returns:
            The scores, or None if the criterion must score again at each sparsity; and the network with the seconds of scoring.
        """
        if not methods.scored_once(criterion):
            return None, network
        start = time.perf_counter()
        with methods.unaltered_process(f"'{criterion.name}'"):
            scores = methods.score(network.problem, criterion)
        return scores, replace(network, score_seconds=self.seconds_since(start))

    def cut(self, network: Network, criterion: methods.Criterion, sparsity: float, scores: methods.Scores | None = None) -> Network:
        """Cut in place to a sparsity.

        Args:
            network: the network to cut.
            criterion: ranks the weights.
            sparsity: the fraction to remove, in [0, 1), of the quantity `job.match`.
            scores: the result of `scored` for this network; None scores it now.
        """
        start = time.perf_counter()
        with methods.unaltered_process(f"'{criterion.name}'"):
            mask = methods.cut(network.problem, criterion, self.granularity, sparsity, scores, self.cost)
        seconds = (network.score_seconds or 0.0) + self.seconds_since(start)
        return replace(network.with_problem(mask=mask, target=sparsity), score_seconds=seconds)

    def smaller(self, network: Network) -> Network:
        """The network as it would be deployed after its cut: without the channels that the mask removes, and with its latency.

        Latency is timed only if the job is measured on the test split and the granularity can make a network faster.

        Raises:
            RuntimeError: the mask does not have the sparsity or the pattern of the granularity, or the latency misses its target.
        """
        cut, compacts = network.problem, self.granularity.compacts
        if self.job.match != "latency":  # two timings never agree exactly
            self.granularity.check(cut, cut.target, self.cost)
        small = self.granularity.compact(cut)
        latencies = {}
        timed = self.job.split == "test" or self.job.match == "latency"
        if cut.target and timed and (compacts or self.granularity.fixed_sparsity is not None):
            inputs = self.dataset.train.read(cost.LATENCY_BATCHES[-1])
            dense, pruned = cost.latency([self.initial(), small.model], inputs, mask=small.mask)
            latencies = {"latency_ms": pruned, "dense_latency_ms": dense}
            if self.job.match == "latency":
                cost.check_latency(cut.target, 1.0 - pruned / dense)
        kept, whole_mask = methods.kept_weights(small.mask)[0], cut.mask if compacts else None
        return replace(network, problem=small, kept_by_cut=kept, whole_mask=whole_mask, latencies=latencies)

    def recalibrated(self, network: Network) -> Network:
        """The network with new statistics of batch norm, in place, estimated on what scoring reads, if the protocol asks for it."""
        if self.job.protocol.recalibrate_batchnorm:
            methods.recalibrate_batchnorm(network.problem.model, network.problem.batches)
        return network

    def measure(self, network: Network) -> Measurement:
        """The columns of a network's row: quality on the job's split, size and seconds.

        Raises:
            RuntimeError: the mask is not that of the cut, or masked weights are not zero.
            FloatingPointError: an output of the network is not finite.
        """
        architecture.check_source(self.job)
        problem = network.problem
        kept = methods.kept_weights(problem.mask)[0]
        if network.kept_by_cut not in (None, kept) or not methods.mask_holds(problem.model, problem.mask):
            raise RuntimeError(f"the mask keeps {kept} weights, the cut kept {network.kept_by_cut}, or masked weights are not zero")
        split = self.dataset.test if self.job.split == "test" else self.dataset.validation or self.dataset.train
        logits = metrics.logits_of(problem.model, split)
        measured = metrics.quality(logits, split.targets)
        dense = self._dense
        size = cost.size(problem.model, problem.mask, self.flops(problem))
        return {
            "status": "collapsed" if size.layers_collapsed > 0 or network.dense_at_chance else "ok",
            "sparsity_reached": 1.0 - kept / dense.prunable,
            "prunable_weights": dense.prunable,
            "kept_weights": kept,
            "parameters": dense.parameters,
            "flops": dense.flops,
            **dataclasses.asdict(size),
            "effective_sparsity": self._effective_sparsity(problem, dense.prunable),
            **measured,
            "peak_memory_mb": self._memory.peak(),
            **network.latencies,
            "match_reached": cost.reached(self.job.match, dense, kept, size, network.latencies),
            "train_seconds": network.train_seconds,
            "training_flops": network.training_flops,
            "score_seconds": network.score_seconds,
            **({} if self.job.split == "test" else {"hits": metrics.hits(logits, split.targets)}),
        }

    def dense_training_flops(self, finetune_epochs: int) -> int:
        """FLOPs of one training and fine-tuning of the dense network, see `bench.trial.training_cost`."""
        return FACTOR * self._dense.flops * len(self.dataset.train) * (self.job.protocol.epochs + finetune_epochs)

    @property
    def _dense(self) -> cost.Dense:
        """The counts of the dense network."""
        choice = self.job.protocol.include, self.job.protocol.exclude
        return architecture.dense(self.job.architecture, self.dataset.input_shape, self.dataset.classes, *choice)

    def flops(self, problem: Problem) -> tuple[int, dict[str, int]]:
        """The FLOPs of a network that may be smaller than the dense one, without its mask; see `bench.trial.flops.layer_flops`."""
        dense = self._dense
        if methods.kept_weights(problem.mask)[1] == dense.prunable:
            return dense.flops, dense.layers
        return layer_flops(problem.model, self.dataset.input_shape, self.job.protocol.include, self.job.protocol.exclude)

    def _effective_sparsity(self, problem: Problem, prunable: int) -> float | None:
        """Effective sparsity as a fraction of the dense network's prunable weights; None if it is not defined.

        It depends on the mask only, which a network keeps while it is fine-tuned: the last result is kept.
        """
        shape, masks, (known, found) = self.dataset.input_shape, list(problem.mask.values()), self._effective
        if not architecture.has_paths(self.job.architecture, shape, self.dataset.classes):
            return None
        if len(masks) != len(known) or not all(map(is_, masks, known)):
            found = methods.effective_sparsity(problem.model, problem.mask, shape)
            self._effective = masks, found
        left = methods.kept_weights(problem.mask)[1]
        return found if found is None or left == prunable else 1.0 - (1.0 - found) * left / prunable

    def seconds_since(self, start: float) -> float:
        """Seconds since `time.perf_counter()` was `start`, with all work on a GPU finished."""
        device.synchronize(self.device)
        return time.perf_counter() - start
