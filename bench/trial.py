"""One piece of work for one worker: train a dense network, or prune by one method, and measure at every point asked for.

Runs in worker processes and knows no store of rows: a job comes in, measurements go out. The test split is read in one
place, `Workbench.measure`, once for a row, and never by a job that is measured on validation data.
"""

import copy
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn

import methods
from bench import data, evaluate
from bench.job import Configured, Job, Point
from bench.workbench import Measurement, Workbench, posterior_to
from methods import Mask, Problem, Pruner, Recipe, Schedule, Stage

CALIBRATION = 10  # batches


def execute(job: Job) -> dict[str, Measurement]:
    """Do the job: key -> measurement for each of its points. What fails is a measurement with status `failed`.

    A job without points only trains a dense network for others; it raises what its training raises.
    """
    return {point.key: measurement for point, measurement in stream(job)}


def stream(job: Job, bench: "_Trial | None" = None) -> Iterator[tuple[Point, Measurement]]:
    """As `execute`, each point as it is done. `bench`: where to do it, a new one where not given."""
    left = dict.fromkeys(job.points)
    try:
        for point, measurement in (bench or _Trial(job)).run():
            left.pop(point, None)
            yield point, measurement
    except Exception as error:  # any user's method may raise anything; the others go on
        if not job.points:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield from ((point, {"status": "failed", "error": text}) for point in left)


@dataclass(frozen=True)
class Made:
    """A pruned network: `model` under `mask`, or smaller, and then `kept` is the mask of the `whole` network that it is left of."""

    model: nn.Module
    mask: Mask
    kept: Mask | None
    whole: nn.Module
    measured: Measurement


def network(job: Job) -> Made:
    """The network of a job with one point, and its measurement."""
    bench = _Trial(job)
    measured = {point.key: measurement for point, measurement in stream(job, bench)}
    whole = bench.initial()
    found = bench.measured
    if found is None:
        return Made(whole, methods.full_mask(whole), None, whole, measured[job.points[0].key])
    return Made(found.model, found.mask, bench.cut_mask if bench.granularity.compacts else None, whole, measured[job.points[0].key])


def seconds_per_epoch(job: Job) -> float:
    """How long an epoch of ordinary training on the job's block takes, from a few batches, about a second's work."""
    bench = Workbench(dataclasses.replace(job, training=Configured("map")))
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


class _Trial(Workbench):
    """The ways to a pruned network: one for each stage and schedule."""

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
            initial = self.problem(self.initial())
            reason = criterion.unsupported(initial) or self.granularity.unsupported(initial)
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
            yield from self._finetunes(self.smaller(self._ablated(cut, problem.model)), sparsity, seconds + more)

    def _cut_then_train(self, criterion: methods.Criterion) -> Iterator[tuple[Point, Measurement]]:
        for sparsity in self.job.sparsities:
            self.train_seconds = 0.0
            cut, seconds = self._cut(self.problem(self.initial()), criterion, sparsity, None)
            cut = self.smaller(self._ablated(cut))
            yield from self._finetunes(replace(cut, posterior=self.train(cut, self.job.protocol.epochs)), sparsity, seconds)

    def _cut_while_training(self, criterion: methods.Criterion, schedule: Schedule) -> Iterator[tuple[Point, Measurement]]:
        for sparsity in self.job.sparsities:
            self.train_seconds = 0.0
            problem = replace(self.problem(self.initial()), target=sparsity)
            pruner = Pruner(criterion, self.granularity, schedule, sparsity, self.cost)
            state = self.train(problem, self.job.protocol.epochs, pruner=pruner)
            yield from self._finetunes(self.smaller(self._ablated(replace(problem, posterior=state))), sparsity, None)

    def _cut_while_finetuning(self, criterion: methods.Criterion, schedule: Schedule) -> Iterator[tuple[Point, Measurement]]:
        problem = self._dense_network()
        trained = self.train_seconds
        for point in self.job.points:
            self.train_seconds = trained
            cut = replace(problem, model=copy.deepcopy(problem.model), target=point.sparsity)
            pruner = Pruner(criterion, self.granularity, schedule, point.sparsity, self.cost)
            self.train(cut, point.finetune_epochs, previous=problem.posterior, pruner=pruner)
            control = self._ablated(cut, problem.model)
            if control is not cut and point.finetune_epochs:
                self.train(control, point.finetune_epochs, previous=control.posterior)
            yield point, self.measure(self.smaller(control)) | {"train_seconds": self.train_seconds}

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
        mask = methods.cut(problem, criterion, self.granularity, sparsity, scores, self.cost)
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
