"""What several tests share: a suite that runs in seconds, the registry given back as it was, the command line in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small networks lose by threads

import pytest
import torch

from bench.trial import metrics
from methods.registry import registry

if TYPE_CHECKING:
    from tests.bench.repositories import Once

TINY = """
name = "tiny"
description = "seconds, for tests"
blocks = [{ dataset = "breast_cancer", architectures = ["mlp"] }]
sparsities = [0.5, 0.9]
seeds = [0, 1]
epochs = 3
finetune_epochs = [0, 1]
batch_size = 64
"""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The pretend device stays known to its process and changes how torch treats others: its tests run only where they are named."""
    return True if collection_path.name == "pretend_device" and not any("pretend_device" in arg for arg in config.args) else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def clean_registry(tmp_path: Path) -> Iterator[None]:
    """Whatever a test registers is gone after it, with the modules of its folder."""
    before, modules, path, measured = registry.snapshot(), set(sys.modules), list(sys.path), dict(metrics.METRICS)
    yield
    registry.restore(before)
    metrics.METRICS.clear()
    metrics.METRICS.update(measured)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name.startswith("razorbench_plugin_") or (file and Path(file).is_relative_to(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with tiny.toml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> "Once":
    """Files that the first test of a module makes, and the others copy."""
    from tests.bench.repositories import Once

    return Once(tmp_path_factory.mktemp("once"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clean_registry: None) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: `bench("run", "--suite", ...)` -> (exit code, stdout, stderr)."""
    from bench.cli import interruption, main

    monkeypatch.setattr(interruption, "watch", lambda _: None)  # pytest handles the signals of this process

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["razorbench", *arguments])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run
