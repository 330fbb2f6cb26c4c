"""With how many threads a job computes is the job's: the same numbers in a worker, in this process, and from `export`."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.spec.setting import Setting
from bench.spec.suite import load_suite
from bench.storage.checkpoints import Networks
from bench.storage.results_csv import read_rows
from bench.trial import trial
from bench.trial.job import Environment, Job

Bench = Callable[..., tuple[int, str, str]]
OPTIONS = ("--suite", "tiny.toml", "--finetune-epochs", "0")


def trained(job: Job) -> dict[str, torch.Tensor]:
    trial.execute(job)
    return Networks(job.environment.cache / "networks").load(job.network)[0]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """This process as a user's is: with as many threads as cores."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_what_export_leaves_is_what_run_would_have_made(
    tiny: Path, bench: Bench, two_threads: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose sums are divided among threads: bit for bit the same file, under the same key."""
    text = (tiny / "tiny.toml").read_text()
    (tiny / "tiny.toml").write_text(text.replace('"breast_cancer"', '"digits"').replace('"mlp"', '"lenet5"'))
    job = Job(
        method="dense", dataset="digits", architecture="lenet5", protocol=load_suite("tiny.toml").protocol("digits", "lenet5"), seed=0,
        training="map", criterion="", stage=None, setting=Setting({"lr": 0.1, "weight_decay": 1e-3}), granularity="weight",
        network="x", points=(),
        environment=Environment("cpu", None, tiny / "cache"),
    )  # fmt: skip
    with_threads = [dataclasses.replace(job.environment, threads=n) for n in (1, 2)]
    states = [trained(dataclasses.replace(job, network=f"{e.threads}", environment=e)) for e in with_threads]
    assert not all(torch.equal(value, states[1][name]) for name, value in states[0].items()), "or this test would say nothing"
    made: dict[str, dict[str, torch.Tensor]] = {}
    for which, command in (
        ("export", ("export", *OPTIONS, "--method", "magnitude", "--sparsity", "0.5", "--seed", "0", "--output", "net")),
        ("run", ("run", *OPTIONS, "--methods", "magnitude", "--sparsities", "0.5", "--seeds", "0", "--workers", "1")),
    ):
        folder = tmp_path_factory.mktemp(which)
        (folder / "tiny.toml").write_text((tiny / "tiny.toml").read_text())
        monkeypatch.chdir(folder)
        code, _, err = bench(*command)
        assert (code, err) == (0, "")
        (file,) = (folder / ".bench" / "networks").iterdir()
        made[which] = {file.stem: Networks(file.parent).load(file.stem)[0]}
    assert made["run"].keys() == made["export"].keys()
    for key, state in made["run"].items():
        assert all(torch.equal(value, made["export"][key][name]) for name, value in state.items())
    assert torch.get_num_threads() == 2, "and the caller's threads are as they were"


def test_rows_say_their_threads(tiny: Path, bench: Bench, two_threads: None) -> None:
    bench("run", *OPTIONS, "--methods", "random", "--sparsities", "0.5", "--seeds", "0", "--workers", "1", "--output", "out")
    assert {'"threads": 1' in row.environment for row in read_rows(Path("out/results.csv"))} == {True}
