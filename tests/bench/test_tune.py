"""Tuning: the same trials for every method, on validation data, resumable; what it chose is run and compared with the defaults."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import methods
from bench import catalogue, data, pipeline, planning, trial, tune
from bench.executor import Inline
from bench.job import Place
from bench.planning import Request
from bench.results import read_rows
from bench.spec import Suite, UserError, load_suite
from bench.store import Store
from bench.tune import Study
from methods import Float, Int, Range, Stage

SEARCHED = "magnitude,random,snip,obd"


@pytest.fixture
def suite(tiny: Path) -> Suite:
    return load_suite("tiny.toml")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/store.db")


def request_(suite: Suite, names: str, tmp: Path, **changes: Any) -> Request:
    place = Place("cpu", None, tmp / "cache")
    return Request(planning.narrow(suite, **{"trials": 3, "pool": 3} | changes), catalogue.select_methods(names), place)


def studies_of(request: Request, store: Store) -> list[Study]:
    """The studies of a request, their pools trained."""
    networks, studies = planning.tuning(request, store.url)
    pipeline.run(networks, store, Inline())
    assert not [job for job in networks.jobs if job.points], "nothing is measured yet"
    return studies


def trials_of(study: Study) -> list[tuple[dict[str, Any], float | None]]:
    return [(t.params, t.value) for t in tune._finished(tune._open(study))]


# --- the pool and the ranges


def test_a_pool_begins_with_the_defaults_and_stays_in_the_ranges() -> None:
    spam = methods.make("trainings", "spam", {"prior": "layer"})
    drawn = tune.pool(spam, {"prior": "layer"}, 16, 7)
    assert drawn[0] == planning.hyperparameters_of(spam)
    assert drawn == tune.pool(spam, {"prior": "layer"}, 16, 7)
    assert drawn[1:] != tune.pool(spam, {"prior": "layer"}, 16, 8)[1:]
    assert drawn[:4] == tune.pool(spam, {"prior": "layer"}, 4, 7), "a larger pool begins with the smaller one"
    for hyperparameters in drawn:
        assert methods.make("trainings", "spam", hyperparameters)
        assert (hyperparameters["prior"], hyperparameters["structure"]) == ("layer", "diagonal"), "other methods are not found by a search"
    rates = sorted(h["weight_decay"] for h in drawn[1:])
    assert rates[0] < 1e-4 < 1e-2 < rates[-1], "spread over the decades"


@pytest.mark.parametrize("allowed", [Range(0.5, 2.0), Range(1e-4, 1.0, log=True), Range(1, 5, integer=True), Range(1, 64, True, True)])
def test_a_range_is_covered_from_end_to_end(allowed: Range) -> None:
    values = [allowed.at(u / 1000) for u in range(1000)]
    assert values == sorted(values)
    assert all(v in allowed for v in values)
    assert values[0] == allowed.low
    assert values[-1] == pytest.approx(allowed.high, rel=0.02)
    if allowed.integer and not allowed.log:
        assert {v: values.count(v) for v in values} == dict.fromkeys(range(1, 6), 200)


def test_choices_are_equally_likely() -> None:
    allowed = Range(choices=("a", "b"))
    assert [allowed.at(u) for u in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


# --- fairness


def test_every_method_has_the_same_trials_and_the_first_is_the_defaults(suite: Suite, tmp_path: Path, store: Store) -> None:
    """Also one without hyperparameters: its trials go through training configurations and fine-tuning's learning rate."""
    studies = studies_of(request_(suite, SEARCHED, tmp_path), store)
    found = pipeline.search(studies, tmp_path / "cache", Inline())
    assert len(found) == len(studies) == 4
    for study in studies:
        done = trials_of(study)
        assert len(done) == 3
        assert done[0][0] == study.defaults()
        mine = found["breast_cancer", "mlp", study.job.method]
        assert (mine.trials, mine.default_accuracy) == (3, done[0][1])
        assert mine.accuracy == max(value or 0.0 for _, value in done)
        assert {"training", "finetune_lr_scale"} <= done[0][0].keys()
    assert all(study.pool == studies[0].pool for study in studies), "the same training configurations for all"


def test_a_search_never_reads_the_test_split_nor_an_evaluation_seed(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(self: data.Dataset) -> data.Split:
        raise AssertionError("the test split was read")

    monkeypatch.setattr(data.Dataset, "test", property(closed))
    seeds, stream = set(), trial.stream
    monkeypatch.setattr(trial, "stream", lambda job: seeds.add(job.seed) or stream(job))
    studies = studies_of(request_(suite, SEARCHED, tmp_path), store)
    found = pipeline.search(studies, tmp_path / "cache", Inline())
    assert all(f.default_accuracy > 0.3 for f in found.values()), "a failed measurement would count as 0"
    assert seeds == {suite.tuning_seed}


def test_the_value_of_a_trial_is_the_mean_pruned_validation_accuracy(suite: Suite, tmp_path: Path, store: Store) -> None:
    (study,) = studies_of(request_(suite, "magnitude", tmp_path, trials=1), store)
    (done,) = trials_of(study) if tune.search(study) else []
    measured = trial.execute(study.job)
    assert len(measured) == 2 * 2
    assert done[1] == pytest.approx(sum(m["accuracy"] for m in measured.values()) / 4)


def test_pool_networks_are_trained_once_for_all_methods(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    dense = trial.Trial._dense

    def counted(self: Any) -> Any:
        trained.append(self.job.network)
        return dense(self)

    monkeypatch.setattr(trial.Trial, "_dense", counted)
    asked = request_(suite, "magnitude,random,obd,opd", tmp_path)
    studies_of(asked, store)
    assert len(trained) == len(set(trained)) == 3
    assert planning.tuning(asked, store.url)[0].jobs == []


def test_a_network_that_fails_is_a_bad_trial_and_the_others_go_on(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = studies_of(request_(suite, "magnitude", tmp_path, trials=10), store)
    for member in study.pool[1:]:
        (tmp_path / "cache" / "networks" / f"{member.network}.safetensors").unlink()
    found = tune.search(study)
    assert found.chosen.training == study.pool[0].training.hyperparameters
    assert {value for params, value in trials_of(study) if params["training"]} == {0.0}


# --- resuming


def test_a_killed_search_goes_on_to_the_same_end(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [Store(f"sqlite:///{tmp_path}/{name}.db") for name in ("undisturbed", "killed")]
    asked = request_(suite, "obd", tmp_path, trials=7)
    (whole,) = studies_of(asked, stores[0])
    tune.search(whole)

    killed = dataclasses.replace(whole, storage=stores[1].url)
    stream, calls = trial.stream, []

    def dies(job: Any) -> Any:
        calls.append(job)
        if len(calls) in (1, 4):  # while the first trial runs, and later on
            raise KeyboardInterrupt
        return stream(job)

    monkeypatch.setattr(trial, "stream", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune.search(killed)
        assert tune.found(killed) is None
    tune.search(killed)
    assert trials_of(killed) == trials_of(whole)
    assert tune.found(killed).chosen == tune.found(whole).chosen  # type: ignore[union-attr]


def test_more_trials_go_on_from_those_there_are(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (few,) = studies_of(request_(suite, "obd", tmp_path, trials=2), store)
    first = tune.search(few)
    (more,) = studies_of(request_(suite, "obd", tmp_path, trials=5), store)
    assert more.key == few.key
    tune.search(more)
    assert len(trials_of(more)) == 5
    assert tune.found(few) == first, "fewer trials asked for: the same answer as before"


def test_what_was_measured_is_not_measured_again(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One training configuration and nothing to fine-tune: every trial of `random` is the first again, and costs nothing."""
    (study,) = studies_of(request_(suite, "random", tmp_path, pool=1, finetune_epochs=[0]), store)
    calls = []
    stream = trial.stream
    monkeypatch.setattr(trial, "stream", lambda job: calls.append(1) or stream(job))
    found = tune.search(study)
    assert (found.trials, len(calls)) == (3, 1)


def test_hopeless_trainings_are_given_up_and_count_as_trials(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where a trial trains a network for every sparsity."""
    asked = request_(suite, "grasp", tmp_path, trials=9, pool=1, finetune_epochs=[0])
    (study,) = studies_of(asked, store)
    assert study.job.stage is Stage.INIT
    accuracies = iter([0.9] * 5 + [0.1] * 4)
    points: list[int] = []

    def made_up(job: Any) -> Any:
        accuracy = next(accuracies)
        for k, point in enumerate(job.points):
            points.append(k)
            yield point, {"accuracy": accuracy}

    monkeypatch.setattr(trial, "stream", made_up)
    found = tune.search(study)
    assert found.trials == 9
    assert points == [0, 1] * 5 + [0] * 4


# --- by the command line


def test_default_and_tuned_are_separate_rows_and_a_second_run_finds_all(tiny: Path, bench: Callable[..., tuple[int, str, str]]) -> None:
    command = ("run", "--suite", "tiny.toml", "--methods", "magnitude,snip", "--trials", "3", "--output", "out", "--workers", "1")
    code, out, err = bench(*command)
    assert (code, err) == (0, "")
    assert "tuning: 3 trials for each method and block, on validation data" in out
    rows = read_rows(tiny / "out" / "results.csv")
    assert {r.status for r in rows} <= {"ok", "collapsed"}
    keys = [r.identity for r in rows]
    assert len(keys) == len(set(keys))
    pruned = [r for r in rows if r.criterion]
    assert [sum(r.tuning == t for r in pruned) for t in ("default", "tuned")] == [2 * 2 * 2 * 2] * 2
    for row in (r for r in pruned if r.tuning == "tuned"):
        said = json.loads(row.hyperparameters)
        assert said["tuning"]["trials"] == 3
        assert 0 < said["tuning"]["validation"]["default"] <= said["tuning"]["validation"]["tuned"] <= 1
        assert row.method != "magnitude" or row.dense_accuracy is not None
        assert ("finetuning" in said) == (row.finetune_epochs > 0)
    with (tiny / "out" / "tuned.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["finetune_epochs"], line["trials"]) for line in lines] == [
        ("magnitude", "0", "3"), ("magnitude", "1", "3"), ("snip", "0", "3"), ("snip", "1", "3"),
    ]  # fmt: skip
    for line in lines:
        assert float(line["gain"]) == pytest.approx(float(line["area_tuned"]) - float(line["area_default"]))

    before = [(tiny / "out" / name).read_bytes() for name in ("results.csv", "tuned.csv", "leaderboard.csv")]
    code, again, _ = bench(*command)
    assert code == 0
    assert "0 jobs" not in again
    assert before == [(tiny / "out" / name).read_bytes() for name in ("results.csv", "tuned.csv", "leaderboard.csv")]


def test_what_cannot_be_is_said_in_one_line(tiny: Path, bench: Callable[..., tuple[int, str, str]], suite: Suite) -> None:
    assert bench("run", "--suite", "tiny.toml", "--trials", "-1")[::2] == (
        2,
        "error: trials: Input should be greater than or equal to 0, got -1\n",
    )
    with pytest.raises(UserError, match="tuning_seed 1000 is one of the seeds"):
        planning.narrow(suite, seeds=[0, 1000])


def test_plug_ins_are_searched_too(tiny: Path, bench: Callable[..., tuple[int, str, str]], suite: Suite) -> None:
    (tiny / "mine.py").write_text(
        """
from dataclasses import dataclass
import methods
from methods import Criterion, Float, Problem, Scores

@methods.register("mine")
@dataclass(frozen=True, kw_only=True)
class Mine(Criterion):
    \"\"\"|w|^p.\"\"\"

    power: float = Float(-2.0, -2.0, 2.0)

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.detach().abs().pow(2) * self.power for n, w in problem.weights.items()})
"""
    )
    code, _, err = bench(
        "run", "--suite", "tiny.toml", "--methods", "mine,magnitude", "--plugin", "mine.py", "--trials", "6", "--output", "out",
        "--workers", "1", "--seeds", "0", "--finetune-epochs", "0",
    )  # fmt: skip
    assert (code, err) == (0, "")
    chosen = {
        json.loads(r.hyperparameters)["criterion"]["power"]
        for r in read_rows(tiny / "out" / "results.csv")
        if r.method == "mine" and r.tuning == "tuned"
    }
    assert len(chosen) == 1
    assert chosen.pop() > 0, "the smallest weights are not the ones to keep"


def test_ranges_that_name_other_methods_are_not_searched() -> None:
    class Made(methods.Criterion):
        a: float = Float(1.0, 0.0, 2.0)
        b: int = Int(1, 1, 3)
        c: str = methods.Choice("x", "x", "y", tuned=False)

    made = dataclasses.dataclass(frozen=True, kw_only=True)(Made)
    assert list(tune.tunable(made, {"b": 2})) == ["a"]


def test_status_counts_searches_and_tuned_rows(tiny: Path, bench: Callable[..., tuple[int, str, str]]) -> None:
    text = Path("tiny.toml").read_text()
    Path("tuned.toml").write_text(f"trials = 2\n{text}")
    options = ("--suite", "tuned.toml", "--methods", "magnitude,random")
    _, out, _ = bench("status", *options)
    assert "tuning: 0 of 2 searches finished" in out
    assert "tuned: 0 of 0 rows" in out
    bench("run", *options, "--workers", "1", "--output", "out")
    tuned_rows = sum(row.tuning == "tuned" for row in read_rows(Path("out/results.csv")))
    _, out, _ = bench("status", *options)
    assert "tuning: 2 of 2 searches finished" in out
    assert f"tuned: {tuned_rows} of {tuned_rows} rows" in out
