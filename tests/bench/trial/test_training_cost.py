"""FLOPs of training, against counts by hand: layers of an MLP, samples, epochs and what is kept in each step."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import methods
from bench.trial import trial
from bench.trial.training_cost import FACTOR, Tally
from bench.trial.workbench import Workbench
from methods import EpochRecord, Iterative, Stage, count_masked
from methods.core.callbacks import Work
from tests.bench.trial.test_trial import EPOCHS, LENGTHS, SPARSITIES, dense_of, job_of


def layers(cache: Path) -> tuple[list[int], int, int]:
    """Weights of each layer of the MLP, whose FLOPs are twice their number; samples and steps of an epoch."""
    bench = Workbench(job_of(cache))
    train, batch = len(bench.dataset.train), bench.job.protocol.batch_size
    steps = train // batch + (train % batch > 1)
    return [p.numel() for p in bench.initial().parameters() if p.dim() > 1], train, steps


def measured(cache: Path, **more: Any) -> dict[str, Any]:
    job = job_of(cache, **more)
    return trial.execute(dense_of(job)) | trial.execute(job)


def test_every_stage_has_the_work_of_its_own_networks(tmp_path: Path) -> None:
    weights, samples, _ = layers(tmp_path)
    total = sum(weights)
    epoch = 3 * 2 * samples  # FLOPs of an epoch per weight
    for more, dense_epochs, sparse_epochs in (({}, EPOCHS, 0), ({"stage": Stage.INIT}, 0, EPOCHS)):
        found = measured(tmp_path, **more)
        for length in LENGTHS:
            assert found[f"dense/{length}"]["training_flops"] == epoch * total * (EPOCHS + length)
            for s in SPARSITIES:
                row, kept = found[f"{s}/{length}"], total - count_masked(s, total)
                assert row["dense_training_flops"] == epoch * total * (EPOCHS + length)
                assert row["training_flops"] == epoch * (total * dense_epochs + kept * (sparse_epochs + length))


def test_cuts_during_fine_tuning_count_what_each_epoch_keeps(tmp_path: Path) -> None:
    weights, samples, _ = layers(tmp_path)
    total, epoch = sum(weights), 3 * 2 * samples
    found = measured(tmp_path, schedule=Iterative(rounds=2))
    middle = 1 - math.sqrt(1 - 0.75)
    kept = [total - count_masked(s, total) for s in (middle, 0.75)]
    assert found["0.75/3"]["training_flops"] == epoch * (total * EPOCHS + kept[0] + 2 * kept[1])


def test_rewinding_counts_every_round_and_the_dense_network_is_trained_once(tmp_path: Path) -> None:
    weights, samples, _ = layers(tmp_path)
    total, epoch = sum(weights), 3 * 2 * samples
    found = measured(tmp_path, stage=Stage.DURING, schedule=methods.Rewinding(rate=0.5, to=0.0))
    half, quarter = (total - count_masked(s, total) for s in (0.5, 0.75))
    assert found["0.75/0"]["training_flops"] == epoch * EPOCHS * (total + half + quarter)
    assert found["0.75/0"]["dense_training_flops"] == epoch * EPOCHS * total


def test_a_move_counts_the_dense_gradient(tmp_path: Path) -> None:
    """2 f_S + f_D for the samples of the steps that regrow, 3 f_S for the others."""
    weights, samples, steps = layers(tmp_path)
    total = sum(weights)
    job = job_of(tmp_path, "rigl", Stage.DURING, methods.Regrowth())
    job = dataclasses.replace(job, setting=dataclasses.replace(job.setting, criterion={"updates": 5}))
    batches = methods_batches(job)
    every = max(2, math.floor(0.75 * steps * EPOCHS / 5))
    moves = [t for t in range(1, steps * EPOCHS + 1) if t % every == 0 and t < 0.75 * steps * EPOCHS]
    moving = sum(batches[(t - 1) % steps] for t in moves)
    kept = total - count_masked(0.5, total)
    wanted = 2 * (3 * kept * (samples * EPOCHS - moving) + (2 * kept + total) * moving)
    assert trial.execute(job)["0.5/0"]["training_flops"] == wanted


def methods_batches(job: Any) -> list[int]:
    """The sizes of the batches of one epoch."""
    bench = Workbench(job)
    return [len(y) for _, y in bench.problem(bench.initial()).batches]


def test_smaller_networks_are_counted_as_they_are(tmp_path: Path) -> None:
    """After channels were removed, fine-tuning trains the smaller network."""
    _, samples, _ = layers(tmp_path)
    job = job_of(tmp_path, granularity="channel")
    trial.execute(dense_of(job))
    found = trial.execute(job)["0.5/3"]
    small = 3 * samples * found["flops_kept"]
    assert found["flops_kept"] < found["flops"]
    assert found["training_flops"] == 3 * samples * found["flops"] * EPOCHS + 3 * small


def test_a_step_is_three_forward_passes() -> None:
    """Torch's own counter, on a network whose inputs get a gradient too."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = F.cross_entropy(model(x), torch.arange(4))
    with FlopCounterMode(display=False) as both:
        F.cross_entropy(model(x), torch.arange(4)).backward()
    assert bool(loss.isfinite())
    tally = Tally(forward.get_total_flops() // 4, {})
    tally(EpochRecord(1, 1, 0.0, 0.1, None, 0.0, (Work(4, {}, False),)))
    assert tally.flops == both.get_total_flops() == FACTOR * forward.get_total_flops()
