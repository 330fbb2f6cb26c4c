"""Planning and `status` read cards, not data; a run gives the same rows however its data are read."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.data import sources, split
from bench.execution import pipeline
from bench.execution.executors import Inline
from bench.planning import catalogue
from bench.planning.cells import PointKeys
from bench.planning.plan import Plan, plan
from bench.planning.request import Request
from bench.planning.searches import searches
from bench.spec.columns import Role
from bench.spec.digest import digest
from bench.spec.row import Row, columns_of
from bench.spec.suite import load_suite
from bench.storage.rows import Store
from bench.trial import loading
from bench.trial.job import Environment
from tests.bench.data.test_dataset import picture, tree
from tests.bench.suites import narrowed


def test_the_key_of_a_row_is_the_digest_of_all_that_determines_it() -> None:
    decided = {"network": "n", "stage": "after", "criterion": "c", "hyperparameters": {"b": [1, None], "a": 'é"'}}
    for epochs, scale, sparsity in ((0, 0.1, 0.5), (2, 0.1, 0.5), (2, None, 1e-7), (1, 1, 0)):
        more = {"finetune_epochs": epochs, "finetune_lr_scale": scale if epochs else None, "sparsity": sparsity}
        assert PointKeys(decided).key(epochs, scale, sparsity=sparsity) == digest(decided | more)
    assert PointKeys(decided).key(1, 1.0) != PointKeys(decided).key(1, 1), "as JSON tells them apart"


def test_a_second_plan_opens_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = narrowed(load_suite("digits"), datasets=["digits", "breast_cancer"], architectures=["mlp"], sparsities=[0.5], seeds=[0])
    request = Request(suite, catalogue.select_methods("magnitude,snip"), Environment("cpu", None, tmp_path))
    url = f"sqlite:///{tmp_path / 'store.db'}"

    def planned() -> tuple[Plan, list[str]]:
        loading.forget()
        return plan(request, Store(url)), [study.key for study in searches(request, url)[1]]

    first, studies = planned()

    def closed(*_: Any) -> Any:
        raise AssertionError("the data were opened")

    monkeypatch.setattr(sources, "read", closed)
    second, again = planned()
    assert second.expected == first.expected
    assert second.jobs == first.jobs
    assert again == studies
    for file in (tmp_path / "data").glob("card-*.json"):
        file.unlink()
    with pytest.raises(AssertionError, match="were opened"):
        planned()


def test_rows_are_the_same_if_images_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"folder:{tree(tmp_path / 'set')}"
    suite = narrowed(
        load_suite("digits"), datasets=[name], architectures=["lenet5"], sparsities=[0.5], seeds=[0], epochs=2, finetune_epochs=[1]
    )
    suite = suite.model_copy(update={"batch_size": 8, "augment": ("crop", "flip")})

    def rows(folder: str) -> list[Row]:
        loading.forget()
        request = Request(suite, catalogue.select_methods("magnitude,snip"), Environment("cpu", None, tmp_path / folder))
        store = Store(f"sqlite:///{tmp_path / folder}.db")
        made = plan(request, store)
        pipeline.run(made, store, Inline())
        measured: dict[str, Any] = dict.fromkeys(columns_of(Role.COST))
        return [dataclasses.replace(row, **measured) for row in pipeline.collect(made, store)]

    ahead, computed = list[int](), split.computed
    directly = rows("directly")
    monkeypatch.setattr(split, "HOST_SHARE", 0.0)
    monkeypatch.setattr(split, "computed", lambda *given: ahead.append(1) or computed(*given))
    assert rows("ahead") == directly
    assert ahead
    assert {row.status for row in directly} <= {"ok", "collapsed"}


def test_images_that_change_after_planning_give_no_row_under_the_old_key(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set")
    suite = narrowed(load_suite("digits"), datasets=[f"folder:{folder}"], architectures=["lenet5"], sparsities=[0.5], seeds=[0], epochs=1)
    request = Request(suite, catalogue.select_methods("magnitude,snip"), Environment("cpu", None, tmp_path / "cache"))
    store = Store(f"sqlite:///{tmp_path}/store.db")
    loading.forget()
    made = plan(request, store)
    picture(1, 77).save(folder / "train" / "cat" / "0.png")
    loading.forget()
    pipeline.run(made, store, Inline())
    rows = pipeline.collect(made, store)
    assert {row.status for row in rows} == {"failed"}
    assert all("has changed since this run was started" in row.error for row in rows)
    loading.forget()
    again = plan(request, store)
    assert not again.expected.keys() & made.expected.keys()
    pipeline.run(again, store, Inline())
    assert {row.status for row in pipeline.collect(again, store)} <= {"ok", "collapsed"}
