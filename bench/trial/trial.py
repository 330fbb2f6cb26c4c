"""One piece of work for one worker: train a dense network, or prune by one method, and measure at every point asked for.

Runs in worker processes and knows no store of rows: a job comes in, measurements go out. The test split is read in one
place, `Workbench.measure`, once for a row, and never by a job that is measured on validation data.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

import methods
from bench.storage.checkpoints import Networks
from bench.trial import metrics
from bench.trial.job import Job, Point
from bench.trial.provenance import provenance
from bench.trial.workbench import Measurement, Workbench, posterior_to
from methods import Mask, Problem, Pruner, Schedule, Stage

Work = Iterator[tuple[Point, Measurement]]


def execute(job: Job) -> dict[str, Measurement]:
    """Do the job: key -> measurement for each of its points. What fails is a measurement with status `failed`.

    A job without points only trains a dense network for others; that it failed is kept where the network would be.
    """
    return {point.key: measurement for point, measurement in stream(job)}


def stream(job: Job, bench: "Trial | None" = None) -> Work:
    """As `execute`, each point as it is done. `bench`: where to do it, a new one where not given."""
    where = provenance(job.environment.device, job.environment.threads)

    def work() -> Work:
        try:
            yield from (bench or Trial(job)).run()
        except Exception as error:
            networks = Networks(job.environment.cache / "networks")
            if not job.criterion and not networks.has(job.network):
                networks.fail(job.network, _line(error))
            raise

    with threads(job.environment.threads):
        for point, measurement in _each(job.points, work):
            yield point, measurement | where


def _each(points: Iterable[Point], work: Callable[[], Work]) -> Work:
    """The work's points as they are done; what it raises is the failure of those that it has left, and of no others."""
    left = dict.fromkeys(points)
    try:
        for point, measurement in work():
            left.pop(point, None)
            yield point, measurement
    except Exception as error:  # any user's method may raise anything; the others go on
        yield from ((point, {"status": "failed", "error": _line(error)}) for point in left)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside, as many as before after: their number decides how sums are rounded."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network: `model` under `mask`, or smaller, and then `kept` is the mask of the `whole` network that it is left of."""

    model: nn.Module
    mask: Mask
    kept: Mask | None
    whole: nn.Module
    measured: Measurement


def network(job: Job) -> PrunedNetwork:
    """The network of a job with one point, and its measurement."""
    with threads(job.environment.threads):
        bench = Trial(job)
        measured = {point.key: measurement for point, measurement in stream(job, bench)}
        whole = bench.initial()
    found = bench.measured
    own = measured[job.points[0].key]
    if found is None:
        return PrunedNetwork(whole, methods.full_mask(whole), None, whole, own)
    return PrunedNetwork(found.model, found.mask, bench.cut_mask if bench.granularity.compacts else None, whole, own)


class Trial(Workbench):
    """The ways to a pruned network: one for each stage and schedule."""

    def run(self) -> Work:
        """Each point with its measurement, as it is done."""
        try:
            for point, measurement in self._run():
                self.beat.measured()
                yield point, measurement
        finally:
            self.beat.close()

    def _run(self) -> Work:
        if not self.job.criterion:
            yield from self._dense()
        else:
            criterion = methods.make("criteria", self.job.criterion, self.job.setting.criterion or {})
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

    def _dense(self) -> Work:
        problem = self.problem(self.initial())
        state = self.train(problem, self.job.protocol.epochs)
        held_out = self.dataset.validation
        logits = metrics.logits_of(problem.model, held_out)
        self.dense_off = metrics.at_chance(logits, held_out.targets)
        accuracy = metrics.hit_rate(logits, held_out.targets)
        facts = {"train_seconds": self.train_seconds, "at_chance": self.dense_off, "validation_accuracy": accuracy}
        self.networks.save(self.job.network, problem.model.state_dict(), state, facts)
        yield from self._finetunes(replace(problem, posterior=state), 0.0, None)

    def _by_sparsity(self, work: Callable[[float], Work]) -> Work:
        """The work at each sparsity, rising; what fails at one leaves the others alone."""
        trained = self.train_seconds
        for sparsity in self.job.sparsities:
            self.train_seconds = trained
            yield from _each([p for p in self.job.points if p.sparsity == sparsity], partial(work, sparsity))

    def _train_then_cut(self, criterion: methods.Criterion) -> Work:
        problem = self._dense_network()
        scores, seconds = None, 0.0
        if methods.scored_once(criterion):
            start = time.perf_counter()
            scores = methods.score(problem, criterion)
            seconds = self._since(start)

        def at(sparsity: float) -> Work:
            pruned = replace(problem, model=copy.deepcopy(problem.model))
            cut, more = self._cut(pruned, criterion, sparsity, scores)
            yield from self._finetunes(self.smaller(self._ablated(cut, problem.model)), sparsity, seconds + more)

        yield from self._by_sparsity(at)

    def _cut_then_train(self, criterion: methods.Criterion) -> Work:
        def at(sparsity: float) -> Work:
            cut, seconds = self._cut(self.problem(self.initial()), criterion, sparsity, None)
            cut = self.smaller(self._ablated(cut))
            yield from self._finetunes(replace(cut, posterior=self.train(cut, self.job.protocol.epochs)), sparsity, seconds)

        yield from self._by_sparsity(at)

    def _cut_while_training(self, criterion: methods.Criterion, schedule: Schedule) -> Work:
        def at(sparsity: float) -> Work:
            problem = replace(self.problem(self.initial()), target=sparsity)
            pruner = Pruner(criterion, self.granularity, schedule, sparsity, self.cost)
            state = self.train(problem, self.job.protocol.epochs, pruner=pruner)
            yield from self._finetunes(self.smaller(self._ablated(replace(problem, posterior=state))), sparsity, None)

        yield from self._by_sparsity(at)

    def _cut_while_finetuning(self, criterion: methods.Criterion, schedule: Schedule) -> Work:
        problem = self._dense_network()
        trained = self.train_seconds

        def at(point: Point) -> Work:
            self.train_seconds = trained
            cut = replace(problem, model=copy.deepcopy(problem.model), target=point.sparsity)
            pruner = Pruner(criterion, self.granularity, schedule, point.sparsity, self.cost)
            self.train(cut, point.finetune_epochs, previous=problem.posterior, pruner=pruner)
            control = self._ablated(cut, problem.model)
            if control is not cut and point.finetune_epochs:
                self.train(control, point.finetune_epochs, previous=control.posterior)
            yield point, self.measure(self.smaller(control)) | {"train_seconds": self.train_seconds}

        for point in self.job.points:
            yield from _each([point], partial(at, point))

    def _dense_network(self) -> Problem:
        """The network that a dense job has trained."""
        weights, posterior, facts = self.networks.load(self.job.network)
        self.train_seconds, self.dense_off = facts["train_seconds"], facts["at_chance"]
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

    def _finetunes(self, problem: Problem, sparsity: float, score_seconds: float | None) -> Work:
        """The network as it is, and fine-tuned for each of the lengths asked for, each from here.

        `score_seconds`: None where nothing was scored, or scoring is a part of the training's seconds. A network that cannot be measured
        as it is may be so once it is fine-tuned, and the other way round: each point fails by itself.
        """
        points = [p for p in self.job.points if p.sparsity == sparsity]
        before: Measurement = {}

        def at(point: Point) -> Work:
            length, seconds = point.finetune_epochs, 0.0
            if length == 0:
                measured = before or self.measure(problem)
            else:
                tuned = replace(problem, model=copy.deepcopy(problem.model))
                start, trained = time.perf_counter(), self.train_seconds
                try:
                    self.train(tuned, length, previous=problem.posterior)
                finally:
                    self.train_seconds = trained  # a branch: the next length does not go through it
                seconds = self._since(start)
                measured = self.measure(tuned) | {"accuracy_before_finetune": before.get("accuracy")}
            yield point, measured | {"train_seconds": self.train_seconds + seconds, "score_seconds": score_seconds}

        if any(p.finetune_epochs for p in points):
            with contextlib.suppress(FloatingPointError):  # its outputs are not finite: the point without fine-tuning says so
                before = self.measure(problem)
        for point in points:
            yield from _each([point], partial(at, point))
