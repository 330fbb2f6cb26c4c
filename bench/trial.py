"""One piece of work for one worker: train a dense network, or prune by one method, and measure at every point asked for.

Runs in worker processes and knows no store of rows: a job comes in, measurements go out. The test split is read in one
place, `_Bench.measure`, once for a row, and never by a job that is measured on validation data.
"""

import copy
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench import architectures, data, evaluate
from bench.job import Configured, Job, Place, Point
from bench.progress import Beat
from bench.spec import Protocol
from bench.store import Networks
from methods import Posterior, Problem, Pruner, Recipe, Schedule, Stage

CALIBRATION = 10  # batches
Measurement = dict[str, Any]  # columns of a Row, by name


def execute(job: Job) -> dict[str, Measurement]:
    """Do the job: key -> measurement for each of its points. What fails is a measurement with status `failed`.

    A job without points only trains a dense network for others; it raises what its training raises.
    """
    return {point.key: measurement for point, measurement in stream(job)}


def stream(job: Job) -> Iterator[tuple[Point, Measurement]]:
    """As `execute`, each point as it is done."""
    left = dict.fromkeys(job.points)
    try:
        for point, measurement in _Bench(job).run():
            left.pop(point, None)
            yield point, measurement
    except Exception as error:  # any user's method may raise anything; the others go on
        if not job.points:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield from ((point, {"status": "failed", "error": text}) for point in left)


def seconds_per_epoch(job: Job) -> float:
    """How long an epoch of ordinary training on the job's block takes, from a few batches, about a second's work."""
    bench = _Bench(dataclasses.replace(job, training=Configured("map")))
    batches = data.Batches(bench.dataset.train, job.protocol.batch_size, augment=job.protocol.augment)
    some = list(islice(iter(batches), CALIBRATION))
    problem = bench.problem(bench.initial())
    recipe = Recipe(epochs=1, optimizer=job.protocol.optimizer, lr_scale=1e-6)  # no step may lead it astray
    times = []
    for part in (some[:2], some):
        start = time.perf_counter()
        methods.fit(problem, bench.training, recipe, batches=part)
        times.append((time.perf_counter() - start) / len(part))
    return times[1] * len(batches)


class _Bench:
    """The things one job works with: data, an initial network, seeds, recipes."""

    def __init__(self, job: Job) -> None:
        for plugin in job.place.plugins:
            methods.load_plugin(plugin)
        torch.backends.cudnn.deterministic = True
        self.job = job
        self.device = torch.device(job.place.device)
        self.dataset = load_data(job.dataset, job.protocol, job.place)
        self.training = methods.make("trainings", job.training.name, job.training.hyperparameters)
        self.granularity = methods.make("granularities", job.granularity, {})
        self.networks = Networks(job.place.cache / "networks")
        self.beat = Beat(job.place.cache / "progress")
        self.train_seconds = 0.0
        self.dense_off = False

    def run(self) -> Iterator[tuple[Point, Measurement]]:
        """Each point with its measurement, as it is done."""
        try:
            yield from self._run()
        finally:
            self.beat.close()

    def _run(self) -> Iterator[tuple[Point, Measurement]]:
        if self.job.criterion is None:
            yield from self._dense()
        else:
            criterion = methods.make("criteria", self.job.criterion.name, self.job.criterion.hyperparameters)
            reason = criterion.unsupported(self.problem(self.initial()))
            if reason is not None:
                for point in self.job.points:
                    yield point, {"status": "unsupported", "error": reason}
            elif self.job.stage is Stage.INIT:
                yield from self._cut_then_train(criterion)
            elif self.job.schedule is not None:
                way = self._cut_while_training if self.job.stage is Stage.DURING else self._cut_while_finetuning
                yield from way(criterion, self.job.schedule)
            else:
                yield from self._train_then_cut(criterion)

    def _dense(self) -> Iterator[tuple[Point, Measurement]]:
        problem = self.problem(self.initial())
        state = self.train(problem, self.job.protocol.epochs)
        off = evaluate.switched_off(evaluate.logits_of(problem.model, self.dataset.validation))
        facts = {"train_seconds": self.train_seconds, "switched_off": off}
        self.networks.save(self.job.network, problem.model.state_dict(), state, facts)
        self.dense_off = off
        yield from self._finetunes(replace(problem, posterior=state), 0.0, None)

    def _train_then_cut(self, criterion: methods.Criterion) -> Iterator[tuple[Point, Measurement]]:
        problem = self._dense_network()
        scores, seconds = None, 0.0
        if methods.scored_once(criterion):
            start = time.perf_counter()
            scores = methods.score(problem, criterion)
            seconds = self._since(start)
        trained = self.train_seconds
        for sparsity in self.job.sparsities:
            self.train_seconds = trained
            pruned = replace(problem, model=copy.deepcopy(problem.model))
            cut, more = self._cut(pruned, criterion, sparsity, scores)
            yield from self._finetunes(self._ablated(cut, problem.model), sparsity, seconds + more)

    def _cut_then_train(self, criterion: methods.Criterion) -> Iterator[tuple[Point, Measurement]]:
        for sparsity in self.job.sparsities:
            self.train_seconds = 0.0
            cut, seconds = self._cut(self.problem(self.initial()), criterion, sparsity, None)
            cut = self._ablated(cut)
            yield from self._finetunes(replace(cut, posterior=self.train(cut, self.job.protocol.epochs)), sparsity, seconds)

    def _cut_while_training(self, criterion: methods.Criterion, schedule: Schedule) -> Iterator[tuple[Point, Measurement]]:
        for sparsity in self.job.sparsities:
            self.train_seconds = 0.0
            problem = replace(self.problem(self.initial()), target=sparsity)
            pruner = Pruner(criterion, self.granularity, schedule, sparsity)
            state = self.train(problem, self.job.protocol.epochs, pruner=pruner)
            yield from self._finetunes(self._ablated(replace(problem, posterior=state)), sparsity, None)

    def _cut_while_finetuning(self, criterion: methods.Criterion, schedule: Schedule) -> Iterator[tuple[Point, Measurement]]:
        problem = self._dense_network()
        trained = self.train_seconds
        for point in self.job.points:
            self.train_seconds = trained
            cut = replace(problem, model=copy.deepcopy(problem.model), target=point.sparsity)
            pruner = Pruner(criterion, self.granularity, schedule, point.sparsity)
            self.train(cut, point.finetune_epochs, previous=problem.posterior, pruner=pruner)
            control = self._ablated(cut, problem.model)
            if control is not cut and point.finetune_epochs:
                self.train(control, point.finetune_epochs, previous=control.posterior)
            yield point, self.measure(control) | {"train_seconds": self.train_seconds}

    def _dense_network(self) -> Problem:
        """The network that a dense job has trained."""
        weights, posterior, facts = self.networks.load(self.job.network)
        self.train_seconds, self.dense_off = facts["train_seconds"], facts["switched_off"]
        model = self.initial()
        model.load_state_dict(weights)
        return self.problem(model, posterior_to(posterior, self.device))

    def _cut(self, problem: Problem, criterion: methods.Criterion, sparsity: float, scores: methods.Scores | None) -> tuple[Problem, float]:
        """The problem cut in place to a sparsity, and the seconds that took."""
        start = time.perf_counter()
        mask = methods.cut(problem, criterion, self.granularity, sparsity, scores)
        return replace(problem, mask=mask, target=sparsity), self._since(start)

    def _ablated(self, cut: Problem, dense: nn.Module | None = None) -> Problem:
        """The control in place of a cut network: its mask, permuted or not, on other weights. `dense`: the network it was cut from."""
        if self.job.ablation == "none":
            return cut
        shuffle = self.job.ablation == "shuffle"
        mask = methods.shuffled(cut.mask, cut.generator("shuffle")) if shuffle else cut.mask
        model = self.initial("initial weights" if shuffle else "new initial weights") if self.job.retrains else copy.deepcopy(dense)
        assert model is not None
        methods.apply_mask(model, mask)
        control = replace(cut, model=model, mask=mask)
        if self.job.retrains and self.job.stage is not Stage.INIT:  # those are trained by their caller
            control = replace(control, posterior=self.train(replace(control, posterior=None), self.job.protocol.epochs))
        return control

    def _finetunes(self, problem: Problem, sparsity: float, score_seconds: float | None) -> Iterator[tuple[Point, Measurement]]:
        """The network as it is, and fine-tuned for each of the lengths asked for, each from here.

        `score_seconds`: None where nothing was scored, or scoring is a part of the training's seconds.
        """
        points = [p for p in self.job.points if p.sparsity == sparsity]
        if not points:
            return
        before = self.measure(problem)
        for point in points:
            length = point.finetune_epochs
            if length == 0:
                seconds, measured = 0.0, before
            else:
                tuned = replace(problem, model=copy.deepcopy(problem.model))
                start = time.perf_counter()
                self.train(tuned, length, previous=problem.posterior)
                seconds = self._since(start)
                self.train_seconds -= seconds  # a branch: the next length does not go through it
                measured = self.measure(tuned) | {"accuracy_before_finetune": before["accuracy"]}
            yield point, measured | {"train_seconds": self.train_seconds + seconds, "score_seconds": score_seconds}

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
            model = architectures.create(self.job.architecture, self.dataset.input_shape, self.dataset.classes, pretrained)
        # Channels last is faster for convolutional networks, slower where one convolution only cuts patches.
        convolutional = sum(isinstance(m, nn.Conv2d) for m in model.modules()) > 1
        if convolutional:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.device)

    def train(self, problem: Problem, epochs: int, previous: Posterior | None = None, pruner: Pruner | None = None) -> Posterior:
        """Train, with `pruner` to a mask, or with `previous` fine-tune; the mask must hold, which is checked when measured."""
        start = time.perf_counter()
        protocol, purpose = self.job.protocol, "fine-tuning" if previous else "training"
        scale = protocol.lr_scale * (protocol.finetune_lr_scale if previous else 1.0)
        recipe = Recipe(epochs=epochs, optimizer=protocol.optimizer, lr_scale=scale)
        seed = methods.derive(self.job.seed, purpose)
        batches = data.Batches(self.dataset.train, protocol.batch_size, seed=seed, shuffle=True, augment=protocol.augment)
        state = methods.fit(problem, self.training, recipe, batches=batches, previous=previous, pruner=pruner, on_epoch=self.beat)
        self.train_seconds += self._since(start)
        return state

    def measure(self, problem: Problem) -> Measurement:
        """Quality, on the job's split, and size of a network under its mask, after checking that the mask is exact and holds."""
        kept, total = methods.kept_weights(problem.mask)
        wanted = total - methods.count_masked(problem.target, total)
        if kept != wanted or not methods.held(problem.model, problem.mask):
            raise RuntimeError(f"the mask keeps {kept} weights, {wanted} were asked for, or masked weights are not zero")
        split = self.dataset.test if self.job.split == "test" else self.dataset.validation
        measured = evaluate.quality(evaluate.logits_of(problem.model, split), split.targets)
        flops = _flops(self.job.architecture, self.dataset.input_shape, self.dataset.classes)
        size = evaluate.size(problem.model, problem.mask, flops)
        collapsed = size.layers_collapsed > 0 or self.dense_off
        return {
            "status": "collapsed" if collapsed else "ok",
            "sparsity_reached": 1.0 - kept / total,
            "prunable_weights": size.prunable,
            "kept_weights": size.kept,
            "parameters": size.parameters,
            "parameters_kept": size.parameters_kept,
            "flops": size.flops,
            "flops_kept": size.flops_kept,
            "layers_collapsed": size.layers_collapsed,
            "effective_sparsity": self._effective_sparsity(problem),
            "accuracy": measured.accuracy,
            "top5": measured.top5,
            "nll": measured.nll,
            "brier": measured.brier,
            "ece": measured.ece,
            "peak_memory_mb": self._peak_memory(),
        }

    def _effective_sparsity(self, problem: Problem) -> float | None:
        shape = self.dataset.input_shape
        if not _has_paths(self.job.architecture, shape, self.dataset.classes):
            return None
        return methods.effective_sparsity(problem.model, problem.mask, shape)

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


def load_data(name: str, protocol: Protocol, place: Place) -> data.Dataset:
    """The data set as the protocol splits it, on the place's device; kept in this process for the next job."""
    return _load(name, place.data_root, place.cache, protocol.validation, protocol.split_seed, protocol.train_limit, place.device)


@lru_cache(maxsize=64)
def _has_paths(architecture: str, input_shape: tuple[int, ...], classes: int) -> bool:
    """Asked once for an architecture: to find that a large transformer has none takes seconds."""
    with torch.random.fork_rng(devices=[]):
        model = architectures.create(architecture, input_shape, classes)
    return methods.effective_sparsity(model, methods.full_mask(model), input_shape) is not None


@lru_cache(maxsize=64)
def _flops(architecture: str, input_shape: tuple[int, ...], classes: int) -> tuple[int, dict[str, int]]:
    with torch.random.fork_rng(devices=[]):
        model = architectures.create(architecture, input_shape, classes)
    return evaluate.layer_flops(model, input_shape, torch.device("cpu"))
