"""What one job works with: data, networks, training, and the measurements of a network. The flow of a job is `bench.trial`'s.

The test split is read in one place, `Workbench.measure`, once for a row, and never by a job that is measured on validation data.
"""

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench import data
from bench.networks import build
from bench.spec.suite import Protocol
from bench.storage.checkpoints import Networks
from bench.trial import cost, metrics
from bench.trial.flops import layer_flops
from bench.trial.heartbeat import Heartbeat
from bench.trial.job import Environment, Job
from methods import Posterior, Problem, Pruner, Recipe

Measurement = dict[str, Any]  # columns of a Row, by name


class Workbench:
    """The things one job works with: data, an initial network, seeds, recipes."""

    def __init__(self, job: Job) -> None:
        for plugin in job.environment.plugins:
            methods.load_plugin(plugin)
        torch.backends.cudnn.deterministic = True
        self.job = job
        self.device = torch.device(job.environment.device)
        self.dataset = load_data(job.dataset, job.protocol, job.environment)
        self.training = methods.make("trainings", job.training, job.setting.training)
        self.granularity = methods.get_granularity(job.granularity)
        self.cost = None if job.match == "weights" else cost.cost(job.match, self.initial(), self.dataset.input_shape)
        self.latencies: dict[str, float] = {}
        self.cut_mask: methods.Mask = {}
        self.promised: int | None = None  # how many weights the cut has left, of a network that was cut
        self.measured: Problem | None = None  # the last network that was measured
        self.networks = Networks(job.environment.cache / "networks")
        self.beat = Heartbeat(job.environment.progress)
        self.train_seconds = 0.0
        self.dense_off = False

    def problem(self, model: nn.Module, posterior: Posterior | None = None) -> Problem:
        """What the methods see: training data in one fixed order, without augmentation, and nothing else."""
        scoring = self.dataset.train.shuffled(methods.derive(self.job.seed, "scoring"))
        batches = data.Batches(scoring, self.job.protocol.batch_size, seed=0, shuffle=False)
        return Problem(model, batches, seed=self.job.seed, posterior=posterior)

    def initial(self, purpose: str = "initial weights") -> nn.Module:
        """The network that training starts from: of this seed, and the same for every method; always random where weights are to be new."""
        pretrained = self.job.protocol.pretrained and purpose == "initial weights"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(methods.derive(self.job.seed, purpose))
            model = build.create(self.job.architecture, self.dataset.input_shape, self.dataset.classes, pretrained)
        # Channels last is faster for convolutional networks, slower where one convolution only cuts patches.
        convolutional = sum(isinstance(m, nn.Conv2d) for m in model.modules()) > 1
        if convolutional:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.device)

    def train(self, problem: Problem, epochs: int, previous: Posterior | None = None, pruner: Pruner | None = None) -> Posterior:
        """Train, with `pruner` to a mask, or with `previous` fine-tune; the mask must hold, which is checked when measured."""
        start = time.perf_counter()
        protocol, purpose = self.job.protocol, "fine-tuning" if previous else "training"
        scale = protocol.lr_scale * (self.job.finetune_lr_scale if previous else 1.0)
        recipe = Recipe(epochs=epochs, optimizer=protocol.optimizer, lr_scale=scale)
        seed = methods.derive(self.job.seed, purpose)
        batches = data.Batches(self.dataset.train, protocol.batch_size, seed=seed, shuffle=True, augment=protocol.augment)
        state = methods.fit(problem, self.training, recipe, batches=batches, previous=previous, pruner=pruner, on_epoch=self.beat)
        self.train_seconds += self._since(start)
        return state

    def smaller(self, cut: Problem) -> Problem:
        """The cut network as it would be deployed: what its mask removes is gone where that can be, and its latency is taken.

        Raises RuntimeError where the mask is not what the granularity promises.
        """
        if self.job.match != "latency":  # no two timings agree
            self.granularity.check(cut, cut.target, self.cost)
        small = self.granularity.compact(cut)
        self.cut_mask, self.promised = cut.mask, methods.kept_weights(small.mask)[0]
        self.latencies = {}
        if self.job.split != "test":
            return small  # a search looks at accuracy alone
        if self.granularity.compacts or self.granularity.fixed_sparsity is not None:
            inputs = self.dataset.train.inputs[: cost.LATENCY_BATCHES[-1]]
            dense, pruned = cost.latency([self.initial(), small.model], inputs, mask=small.mask)
            self.latencies = {"latency_ms": pruned, "dense_latency_ms": dense}
        return small

    def measure(self, problem: Problem) -> Measurement:
        """Quality, on the job's split, and size of a network, after checking that its mask is still that of the cut, and holds."""
        kept, left = methods.kept_weights(problem.mask)
        if self.promised not in (None, kept) or not methods.mask_holds(problem.model, problem.mask):
            raise RuntimeError(f"the mask keeps {kept} weights, the cut has left {self.promised}, or masked weights are not zero")
        self.measured = problem
        split = self.dataset.test if self.job.split == "test" else self.dataset.validation
        logits = metrics.logits_of(problem.model, split)
        measured = metrics.quality(logits, split.targets)
        dense = _dense(self.job.architecture, self.dataset.input_shape, self.dataset.classes)
        flops = (dense.flops, dense.layers) if left == dense.prunable else layer_flops(problem.model, self.dataset.input_shape)
        size = cost.size(problem.model, problem.mask, flops)
        collapsed = size.layers_collapsed > 0 or self.dense_off
        return {
            "status": "collapsed" if collapsed else "ok",
            "sparsity_reached": 1.0 - kept / dense.prunable,
            "prunable_weights": dense.prunable,
            "kept_weights": kept,
            "parameters": dense.parameters,
            "parameters_kept": size.parameters_kept,
            "flops": dense.flops,
            "flops_kept": size.flops_kept,
            "layers_collapsed": size.layers_collapsed,
            "effective_sparsity": self._effective_sparsity(problem, dense.prunable),
            **measured,
            "peak_memory_mb": self._peak_memory(),
            **(self.latencies if problem.target else {}),
            **({} if self.job.split == "test" else {"hits": metrics.hits(logits, split.targets)}),
        }

    def _effective_sparsity(self, problem: Problem, prunable: int) -> float | None:
        shape = self.dataset.input_shape
        if not _has_paths(self.job.architecture, shape, self.dataset.classes):
            return None
        found = methods.effective_sparsity(problem.model, problem.mask, shape)
        left = methods.kept_weights(problem.mask)[1]
        return found if found is None or left == prunable else 1.0 - (1.0 - found) * left / prunable

    def _since(self, start: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _peak_memory(self) -> float | None:
        """Megabytes of GPU memory at most since the last measurement; not measured on a CPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def posterior_to(posterior: Posterior, device: torch.device) -> Posterior:
    """The same posterior with its tensors on a device."""
    prior = {n: v.to(device) for n, v in posterior.prior.items()}
    factors = {n: (b.to(device), a.to(device)) for n, (b, a) in posterior.factors.items()}
    return replace(posterior, prior=prior, curvature={n: v.to(device) for n, v in posterior.curvature.items()}, factors=factors)


@lru_cache(maxsize=2)
def _load(name: str, root: Path | None, cache: Path, validation: float, split_seed: int, limit: int | None, device: str) -> data.Dataset:
    loaded = data.load(name, root, validation=validation, split_seed=split_seed, cache=cache / "data", train_limit=limit)
    return loaded.to(device)


def load_data(name: str, protocol: Protocol, environment: Environment) -> data.Dataset:
    """The data set as the protocol splits it, on the device of the environment; kept in this process for the next job."""
    return _load(
        name, environment.data_root, environment.cache, protocol.validation, protocol.split_seed, protocol.train_limit, environment.device
    )


@lru_cache(maxsize=64)
def _has_paths(architecture: str, input_shape: tuple[int, ...], classes: int) -> bool:
    """Asked once for an architecture: to find that a large transformer has none takes seconds."""
    with torch.random.fork_rng(devices=[]):
        model = build.create(architecture, input_shape, classes)
    return methods.effective_sparsity(model, methods.full_mask(model), input_shape) is not None


@lru_cache(maxsize=64)
def tensors(architecture: str, input_shape: tuple[int, ...], classes: int) -> str:
    """Names, shapes and types of a network's state, and how it prints: what the name of an architecture stands for today."""
    with torch.random.fork_rng(devices=[]):
        model = build.create(architecture, input_shape, classes)
    return "\n".join([*(f"{n} {tuple(t.shape)} {t.dtype}" for n, t in model.state_dict().items()), repr(model)])


@lru_cache(maxsize=64)
def _dense(architecture: str, input_shape: tuple[int, ...], classes: int) -> cost.Dense:
    """What the network is before anything is removed."""
    with torch.random.fork_rng(devices=[]):
        model = build.create(architecture, input_shape, classes)
    return cost.dense(model, input_shape)
