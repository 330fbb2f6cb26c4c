"""A Ray cluster of two nodes on this machine: the same results as without it, also when a node dies; and what is refused in one line."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.execution import executors
from bench.execution.executors import JobFailure, Queue
from bench.spec.errors import UserError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'razorbench[ray]'")
pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
MEASURED = [
    "method",
    "tuning",
    "sparsity",
    "seed",
    "status",
    "accuracy",
    "nll",
    "kept_weights",
    "hyperparameters",
    "commit",
    "torch",
    "device",
]
RUN = (
    "run", "--methods", "magnitude,snip,mine", "--datasets", "breast_cancer", "--architectures", "mlp", "--seeds", "0,1",
    "--sparsities", "0.5", "--epochs", "2", "--finetune-epochs", "0", "--output", "out", "--plugin",
)  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def start(folder: Path, *more: str) -> "subprocess.Popen[str]":
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "bench", "new", "mine"], cwd=folder, env=environment, check=True, capture_output=True)
    command = [sys.executable, "-m", "bench", *RUN, "mine.py", *more]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: Path, process: "subprocess.Popen[str]") -> Any:
    """The rows of a finished run, which must have succeeded."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return bench.read(folder / "out" / "results.csv")[MEASURED]


def test_a_run_on_two_nodes_has_the_rows_of_a_local_one(cluster: Any, tmp_path: Path) -> None:
    """With tuning and a plug-in, and while one of the two nodes dies."""
    local = rows(tmp_path / "local", start(tmp_path / "local", "--trials", "2", "--workers", "1"))
    process = start(tmp_path / "ray", "--trials", "2", "--executor", "ray", "--ray-address", cluster.address)
    store = tmp_path / "ray" / ".bench" / "networks"
    until = time.monotonic() + 120
    while not list(store.glob("*.safetensors")):  # the first network is trained: jobs run on both nodes
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert rows(tmp_path / "ray", process).equals(local)


def work(job: str) -> Any:
    """What the jobs of the next test do; it runs on the cluster."""
    if job == "hang":
        time.sleep(1000)
    if job == "exit":
        os._exit(3)
    if job == "shipped":
        return [path for path in sys.path if "py_modules" in path and (Path(path) / "bench" / "trial" / "trial.py").is_file()]
    raise ValueError(job)


def test_jobs_that_fail_hang_or_die_and_the_code_goes_along(cluster: Any, tmp_path: Path) -> None:
    pool = executors.make("ray", address=cluster.address, cache=tmp_path)
    try:
        assert pool.workers == 2
        jobs = Queue(["shipped", "hang", "raise", "exit"])
        done = dict(pool.run(work, jobs, follow=lambda job, result: [], tick=lambda _: None, limit=8))
    finally:
        pool.close()
    assert done["raise"] == JobFailure("ValueError: raise")
    assert done["hang"] == JobFailure("stopped after 8 seconds, the time limit of a job (--timeout)")
    assert done["exit"] == JobFailure("the worker or its machine died 3 times on this job")
    assert done["shipped"], "the code goes along: the machines need no installation of it"
    assert not list((tmp_path / "progress").glob("*"))


def test_a_folder_that_the_machines_do_not_share_is_one_line(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not see '/nowhere/data'; all machines must share"):
        executors.make("ray", address=cluster.address, cache=tmp_path, files=[Path("/nowhere/data")])


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no.such.host.invalid:6379", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_reached_is_refused_at_once(address: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"cannot reach the Ray cluster at '{address}'"):
        executors.make("ray", address=address, cache=tmp_path)
    assert time.monotonic() - begin < 15
