"""Data sets between jobs: each is loaded once while they fit, the one that was not used for longest goes, planning loads none."""

import dataclasses
from pathlib import Path

import pytest

from bench import data
from bench.data import sources
from bench.trial import loading
from bench.trial.job import Environment
from tests.bench.data.test_augmentation import PROTOCOL
from tests.bench.data.test_dataset import tree

NAMES = ["digits", "breast_cancer"]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets that were read, in order."""
    read, names = sources.read, list[str]()

    def counted(name: str, *more: object) -> sources.Raw:
        names.append(name)
        return read(name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "read", counted)
    loading.forget()
    return names


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment("cpu", None, tmp_path / "cache")


def test_alternating_data_sets_are_loaded_once(loads: list[str], environment: Environment, tmp_path: Path) -> None:
    four = [*NAMES, f"folder:{tree(tmp_path / 'a')}", f"folder:{tree(tmp_path / 'b', grey=True)}"]
    first = {name: loading.load_data(name, PROTOCOL, environment) for name in four}
    for _ in range(3):
        assert all(loading.load_data(name, PROTOCOL, environment) is first[name] for name in four)
    assert loads == four
    loading.load_data("digits", dataclasses.replace(PROTOCOL, split_seed=1), environment)
    assert loads == [*four, "digits"]
    loading.forget()
    loading.load_data("digits", PROTOCOL, environment)
    assert loads == [*four, "digits", "digits"]


def test_the_one_that_was_not_used_for_longest_goes(loads: list[str], environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [dataclasses.replace(PROTOCOL, split_seed=seed) for seed in range(3)]
    size = data.load("digits", None, validation=0.1).nbytes
    monkeypatch.setattr(loading, "BOUND", 2.5 * size)
    loads.clear()
    for seed in (0, 1, 0, 2, 0, 1):
        loading.load_data("digits", variants[seed], environment)
    assert len(loads) == 4, "the variants 0, 1 and 2, and 1 again, which was dropped for 2"
    monkeypatch.setattr(loading, "BOUND", 0)
    kept = loading.load_data("digits", variants[2], environment)
    assert loading.load_data("digits", variants[2], environment) is kept, "the last one stays, however large it is"
    assert len(loads) == 5


def test_planning_loads_data_only_once_ever(loads: list[str], environment: Environment) -> None:
    card = loading.load_card("digits", PROTOCOL, environment)
    assert loading.load_card("digits", PROTOCOL, environment) is card
    loading.load_data("digits", PROTOCOL, environment)
    assert loads == ["digits"], "what planning had to load serves the first job"
    loading.forget()  # as another process
    assert loading.load_card("digits", PROTOCOL, environment) == card
    assert loads == ["digits"]


def test_a_cache_that_cannot_be_written_costs_one_load_per_process(loads: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = Environment("cpu", None, tmp_path / "file")
    for _ in range(2):
        assert loading.load_card("digits", PROTOCOL, environment).classes == 10
    assert loads == ["digits"]


def test_data_of_a_users_own_function_are_loaded_once_per_process(loads: list[str], environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef load():\n    part = (torch.arange(80.0).view(40, 2), torch.arange(40) % 2)\n    return part, part\n"
    )
    name = f"{tmp_path}/mine.py:load"
    for _ in range(2):
        assert loading.load_card(name, PROTOCOL, environment).train == 36
        assert len(loading.load_data(name, PROTOCOL, environment).train) == 36
    assert loads == [name]
