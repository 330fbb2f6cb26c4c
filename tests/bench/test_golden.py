"""Golden rows: some numbers as they were when the protocol got its version. Numbers that move need another version.

    python -m tests.bench.test_golden          writes the file again, once PROTOCOL_VERSION is another than the file's

On the release of torch and the device that made the file every number must be the same to the last bit. Elsewhere sums are rounded
otherwise, and these short trainings carry that only a little way: counts must be equal, and measurements close.
"""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

import methods
from bench.execution import pipeline
from bench.execution.executors import Inline
from bench.planning import catalogue
from bench.planning.plan import plan
from bench.planning.request import Request, of_granularity
from bench.publishing import row_comparison
from bench.spec.columns import Role
from bench.spec.row import DECLARED, PROTOCOL_VERSION, Row, columns_of
from bench.spec.suite import Suite, load_suite
from bench.storage.migration import schema_of
from bench.storage.results_csv import ordered, read_rows, write_rows
from bench.storage.rows import Store
from bench.trial.job import Environment
from tests.bench.suites import narrowed

FILE = Path(__file__).parent / "data" / "golden.csv"
WRITTEN = schema_of(FILE.read_text(encoding="utf-8").partition("\n")[0].split(",")) or 0  # columns that came later are not in the file
AGAIN = (
    "bump PROTOCOL_VERSION in bench/spec/row.py, write the golden rows again (python -m tests.bench.test_golden), publish the boards again"
)
COUNTED = ("status", "sparsity_reached", "prunable_weights", "kept_weights", "parameters", "parameters_kept", "flops")
CLOSE = {"accuracy": 0.02, "nll": 0.02, "brier": 0.02, "ece": 0.03, "effective_sparsity": 0.01, "dense_accuracy": 0.02}
# (granularity, match, data set, architecture, methods): every training, criterion, stage and granularity, see the test
CELLS = (
    ("weight", "weights", "breast_cancer", "mlp",
     "random,magnitude,obd,opd,woodfisher,kfac_obs,spam,dwf,snip,grasp,synflow,magnitude_gradual,magnitude_iterative,spam_kfac,"
     "magnitude@decoupled,rigl,set,granet,wanda,obc,sparsegpt,str,l0"),
    ("weight", "weights", "digits", "vit_micro_patch4", "opd@spam(prior=unit),snip"),
    ("channel", "flops", "digits", "lenet5", "magnitude,spam_online,taylor,fpgm,group_lasso"),
    ("channel", "flops", "digits", "resnet20", "slimming"),
    ("weight", "weights", "digits", "resnet20", "snip,grasp"),
    ("2:4", "weights", "digits", "lenet5", "opd,random_init"),
)  # fmt: skip


def compute(cache: Path) -> list[Row]:
    """The rows, as a run in this process gives them, without what they cost."""
    rows: list[Row] = []
    for granularity, match, dataset, architecture, names in CELLS:
        base = load_suite("digits")
        suite = narrowed(base, datasets=[dataset], architectures=[architecture], granularity=granularity, match=match, sparsities=[0.7],
            seeds=[0],
            epochs=2, finetune_epochs=[0, 1], trials=0)  # fmt: skip
        request = Request(of_granularity(_named(suite)), catalogue.select_methods(names), Environment("cpu", None, cache))
        store = Store(f"sqlite:///{cache / 'store.db'}")
        made = plan(request, store)
        pipeline.run(made, store, Inline())
        rows += pipeline.collect(made, store)
    bare: dict[str, Any] = dict.fromkeys(columns_of(Role.COST))
    return ordered(dataclasses.replace(row, **bare, commit="", version="") for row in rows)


def _named(suite: Suite) -> Suite:
    return suite.model_copy(update={"name": "golden"})


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return compute(tmp_path_factory.mktemp("golden"))


def test_golden_rows_have_not_moved(computed: list[Row]) -> None:
    golden = read_rows(FILE)
    assert {row.protocol for row in golden} == {PROTOCOL_VERSION}, AGAIN
    assert [row.identity for row in computed] == [row.identity for row in golden], AGAIN
    moved = [f"{a.method} {a.granularity} {name}: {getattr(a, name)} is now {getattr(b, name)}" for a, b, name in _moved(golden, computed)]
    assert not moved, f"{AGAIN}: {'; '.join(moved[:5])}"


def _moved(golden: list[Row], computed: list[Row]) -> list[tuple[Row, Row, str]]:
    found = []
    for a, b in zip(golden, computed, strict=True):
        if (a.torch, a.device, a.environment) == (b.torch, b.device, b.environment):
            names = ["status", "error", *(name for name in row_comparison.MEASURED if DECLARED[name].since <= WRITTEN)]
            found += [(a, b, name) for name in names if getattr(a, name) != getattr(b, name)]
        else:
            found += [(a, b, name) for name in COUNTED if getattr(a, name) != getattr(b, name)]
            found += [(a, b, name) for name, far in CLOSE.items() if not _close(getattr(a, name), getattr(b, name), far)]
    return found


def _close(a: float | None, b: float | None, far: float) -> bool:
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=far, abs_tol=far))


def test_they_cover_what_is_registered(computed: list[Row]) -> None:
    """What is registered later must come in, too."""
    ran = [row for row in computed if row.criterion]
    assert {row.status for row in ran} <= {"ok", "collapsed"}, [row.error for row in ran if row.error]
    assert {row.criterion for row in ran} == set(methods.names("criteria"))
    assert {row.training for row in ran} == set(methods.names("trainings"))
    assert {row.granularity for row in ran} == set(methods.names("granularities"))
    assert {row.stage for row in ran} == {str(stage) for stage in methods.Stage}
    assert len(ran) >= 12


def test_a_number_that_moves_is_noticed(computed: list[Row]) -> None:
    """By one sample of the test data, on the machine that made the file, and by a few points elsewhere."""
    one = computed[0]
    assert one.accuracy is not None
    near = [dataclasses.replace(one, accuracy=one.accuracy - 1 / 360), *computed[1:]]
    assert [name for _, _, name in _moved(near, computed)] == ["accuracy"]
    elsewhere = [dataclasses.replace(row, torch="another") for row in computed]
    assert not _moved(elsewhere, computed)
    far = [dataclasses.replace(elsewhere[0], accuracy=one.accuracy - 0.05, kept_weights=1), *elsewhere[1:]]
    assert [name for _, _, name in _moved(far, computed)] == ["kept_weights", "accuracy"]


if __name__ == "__main__":
    if FILE.exists() and {row.protocol for row in read_rows(FILE)} == {PROTOCOL_VERSION}:
        raise SystemExit(f"the golden rows are of protocol {PROTOCOL_VERSION}: bump PROTOCOL_VERSION first")
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(compute(Path(scratch)), FILE)
    print(f"wrote {FILE}")
