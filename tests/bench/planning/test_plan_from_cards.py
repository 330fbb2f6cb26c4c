"""Planning and `status` read cards, not data."""

from pathlib import Path
from typing import Any

import pytest

from bench.data import sources
from bench.planning import catalogue
from bench.planning.plan import Plan, plan
from bench.planning.request import Request
from bench.planning.searches import searches
from bench.spec.suite import load_suite
from bench.storage.rows import Store
from bench.trial import loading
from bench.trial.job import Environment
from tests.bench.suites import narrowed


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
