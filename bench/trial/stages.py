"""How a job gets its networks: one function for each stage and schedule of a method.

Each function takes a workbench and yields the results of the job's points as they are measured. Networks are passed as values
(`bench.trial.network.Network`), so nothing of one sparsity or fine-tuning length reaches the next.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

import methods
from bench.spec.errors import shortened
from bench.trial.job import Point
from bench.trial.network import Measurement, Network
from bench.trial.results import Result, Results, isolated
from bench.trial.together import Together
from bench.trial.workbench import Workbench
from methods import Schedule, Stage


def results(bench: Workbench) -> Results:
    """Each point of the workbench's job with its result, as it is measured.

    Raises:
        Exception: whatever a training or a criterion raises before the first sparsity. Later exceptions are failed results.
    """
    try:
        for result in _of_stage(bench):
            bench.heartbeat.measured()
            bench.events.measured(result.point, result.measurement)
            if "training_flops" in result.measurement:
                dense = bench.dense_training_flops(result.point.finetune_epochs)
                result = result._replace(measurement=result.measurement | {"dense_training_flops": dense})
            yield result
    finally:
        bench.heartbeat.close()
        bench.events.close()


def _of_stage(bench: Workbench) -> Results:
    """The results of the function for the job's stage and schedule."""
    job = bench.job
    if not job.criterion:
        yield from dense(bench)
        return
    criterion = methods.make("criteria", job.criterion, job.setting.criterion or {})
    problem = bench.untrained().problem
    reason = criterion.unsupported(problem) or bench.granularity.unsupported(problem)
    if reason is not None:
        yield from (Result(point, {"status": "unsupported", "error": shortened(reason)}) for point in job.points)
    elif job.stage is Stage.INIT:
        yield from _cut_then_train(bench, criterion)
    elif job.schedule is None:
        yield from _train_then_cut(bench, criterion)
    elif job.stage is Stage.DURING:
        yield from _cut_while_training(bench, criterion, job.schedule)
    else:
        yield from _cut_while_finetuning(bench, criterion, job.schedule)


def dense(bench: Workbench) -> Results:
    """Train the dense network, save it for the jobs that prune it, and measure it at the job's points."""
    network = bench.saved_dense(bench.train(bench.untrained()))
    yield from _finetuned(bench, network, bench.job.points)


def _train_then_cut(bench: Workbench, criterion: methods.Criterion) -> Results:
    """Cut a copy of the dense network to each sparsity."""
    scores, whole = bench.scored(bench.loaded_dense(), criterion)

    def pruned(sparsity: float) -> Network:
        cut = bench.cut(whole.copied(), criterion, sparsity, scores)
        return bench.smaller(_control(bench, cut, whole.problem.model))

    yield from _by_sparsity(bench, pruned, Together(bench, pruned))


def _cut_then_train(bench: Workbench, criterion: methods.Criterion) -> Results:
    """Cut the initial network to each sparsity and train it."""

    def cut(sparsity: float) -> Network:
        return bench.smaller(_control(bench, bench.cut(bench.untrained(), criterion, sparsity)))

    def pruned(sparsity: float) -> Network:
        return bench.train(cut(sparsity))

    yield from _by_sparsity(bench, pruned, Together(bench, cut, trains=True))


def _cut_while_training(bench: Workbench, criterion: methods.Criterion, schedule: Schedule) -> Results:
    """Train the initial network to each sparsity."""

    def pruned(sparsity: float) -> Network:
        network = bench.untrained().with_problem(target=sparsity)
        trained = bench.train(network, bench.pruner(criterion, schedule, sparsity))
        return bench.smaller(_control(bench, trained))

    yield from _by_sparsity(bench, pruned, Together(bench, pruned))


def _cut_while_finetuning(bench: Workbench, criterion: methods.Criterion, schedule: Schedule) -> Results:
    """Fine-tune a copy of the dense network to each sparsity, for each length of fine-tuning."""
    whole = bench.loaded_dense()

    def measured(point: Point) -> Results:
        network = whole.copied().with_problem(target=point.sparsity)
        cut = bench.finetune(network, point.finetune_epochs, bench.pruner(criterion, schedule, point.sparsity))
        control = _control(bench, cut, whole.problem.model)
        if control is not cut and point.finetune_epochs:
            control = bench.finetune(control, point.finetune_epochs)
        small = bench.recalibrated(bench.smaller(control))
        yield Result(point, bench.measure(small), small)

    for point in bench.job.points:
        yield from isolated([point], partial(measured, point))


def _control(bench: Workbench, cut: Network, whole: nn.Module | None = None) -> Network:
    """The control network of an ablation: the mask of `cut`, permuted or not, on other weights. `cut` itself without an ablation.

    `whole`: the network that `cut` is a part of, if it was trained before the cut.
    """
    job, problem = bench.job, cut.problem
    if job.ablation == "none":
        return cut
    shuffle = job.ablation == "shuffle"
    mask = methods.shuffled(problem.mask, problem.generator("shuffle")) if shuffle else problem.mask
    model = bench.initial("initial weights" if shuffle else "new initial weights") if job.retrains else copy.deepcopy(whole)
    assert model is not None
    methods.apply_mask(model, mask)
    control = cut.with_problem(model=model, mask=mask, posterior=None if job.retrains else problem.posterior)
    # At initialisation the caller trains the control, as it trains the network of the method itself.
    return bench.train(control) if job.retrains and job.stage is not Stage.INIT else control


def _by_sparsity(bench: Workbench, pruned: Callable[[float], Network], together: Together) -> Results:
    """The results at each sparsity, in increasing order; a failure at one sparsity does not affect the others.

    What could not be done together is done here, one by one.
    """

    def measured(sparsity: float, points: Sequence[Point]) -> Results:
        network = together.pruned(sparsity) or pruned(sparsity)
        yield from _finetuned(bench, network, points, together)

    for sparsity in bench.job.sparsities:
        points = [p for p in bench.job.points if p.sparsity == sparsity]
        yield from isolated(points, partial(measured, sparsity, points))


def _finetuned(bench: Workbench, network: Network, points: Sequence[Point], together: Together | None = None) -> Results:
    """The results of one network: without fine-tuning, and fine-tuned for each length, each time from the same weights.

    Statistics of batch norm are estimated again, if the protocol asks for it, before each measurement: those of the dense network too.
    A network with outputs that are not finite may be measurable after fine-tuning, and the reverse: each point fails by itself.
    """
    network = bench.recalibrated(network)
    before: Measurement = {}
    if any(point.finetune_epochs for point in points):
        with contextlib.suppress(FloatingPointError):  # its outputs are not finite: the point without fine-tuning reports this
            before = bench.measure(network)

    def measured(point: Point) -> Results:
        if not point.finetune_epochs:
            yield Result(point, before or bench.measure(network), network)
        else:
            found = together.finetuned(point.sparsity, point.finetune_epochs) if together is not None else None
            tuned = bench.recalibrated(found or bench.finetune(network.copied(), point.finetune_epochs))
            yield Result(point, bench.measure(tuned) | {"accuracy_before_finetune": before.get("accuracy")}, tuned)

    for point in points:
        yield from isolated([point], partial(measured, point))
