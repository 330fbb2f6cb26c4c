"""Tuning: the same trials for every method, on validation data, resumable; what it chose is run and compared with the defaults."""

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import methods
from bench import data
from bench.execution import pipeline
from bench.execution.executors import Inline
from bench.planning import catalogue
from bench.planning.request import Request
from bench.planning.searches import searches
from bench.spec.errors import UserError
from bench.spec.setting import Setting
from bench.spec.suite import Suite, load_suite
from bench.storage.checkpoints import Networks
from bench.storage.results_csv import read_rows
from bench.storage.rows import Store
from bench.trial import stages, trial
from bench.trial.job import Environment
from bench.trial.workbench import Workbench
from bench.tuning import trials, tune
from bench.tuning.study import Study
from tests.bench.suites import narrowed

SEARCHED = "magnitude,random,snip,obd"


@pytest.fixture
def suite(tiny: Path) -> Suite:
    return load_suite("tiny.toml")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/store.db")


def request_(suite: Suite, names: str, tmp: Path, **changes: Any) -> Request:
    place = Environment("cpu", None, tmp / "cache")
    return Request(narrowed(suite, **{"trials": 3, "pool": 3} | changes), catalogue.select_methods(names), place)


def studies_of(request: Request, store: Store) -> list[Study]:
    """The studies of a request, their pools trained."""
    assert not [job for job in searches(request, store.url)[0].jobs if job.points], "nothing is measured yet"
    found, failures = pipeline.pools(request, store, Inline())
    assert not failures
    return found


def search(studies: list[Study], store: Store) -> dict[tuple[str, str, str], Setting]:
    found, failures = pipeline.search(studies, store, studies[0].job.environment.cache, Inline())
    assert not failures
    return found


def trials_of(study: Study) -> list[Any]:
    return trials.opened(study).get_trials()


def told(study: Study) -> list[tuple[dict[str, Any], int, float | None]]:
    return [(t.params, t.user_attrs["seed"], t.value) for t in trials_of(study)]


# --- fairness


def test_every_method_has_the_same_trials_and_the_first_is_the_defaults(suite: Suite, tmp_path: Path, store: Store) -> None:
    """Also one without hyperparameters: its trials go through training configurations and fine-tuning's learning rate."""
    studies = studies_of(request_(suite, SEARCHED, tmp_path, trials=8), store)
    found = search(studies, store)
    assert len(found) == len(studies) == 4
    for study in studies:
        done = trials_of(study)
        assert len(done) == 8
        assert done[0].params == study.defaults()
        assert [t.user_attrs["seed"] for t in done] == [0] * 4 + [1, 1, 2, 2], "four are screened, then one of them and the defaults go on"
        assert [t.user_attrs.get("candidate") for t in done] == [0, 1, 2, 3, None, None, None, None]
        assert [t.params for t in done[4:]] == [study.defaults(), done[5].params] * 2
        whole = [t for t in done[1:4] if t.state.name == "COMPLETE" and t.params != study.defaults()]
        assert done[5].params == max(whole, key=lambda t: t.value).params
        mine = found["breast_cancer", "mlp", study.job.method]
        assert mine.search.trials == 8
        assert mine.search.default_accuracy == pytest.approx((done[4].value + done[6].value) / 2)
        assert mine.search.accuracy in (mine.search.default_accuracy, pytest.approx((done[5].value + done[7].value) / 2))
        assert {"training", "finetune_lr_scale"} <= done[0].params.keys()
        assert mine.search.epochs == sum(t.user_attrs["epochs"] for t in done)
    assert all(study.pool == studies[0].pool for study in studies), "the same training configurations for all"


def test_a_search_never_reads_the_test_split_nor_an_evaluation_seed(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(self: data.Dataset) -> data.Split:
        raise AssertionError("the test split was read")

    monkeypatch.setattr(data.Dataset, "test", property(closed))
    seeds, stream = set(), trial.stream
    monkeypatch.setattr(trial, "stream", lambda job, *bench: seeds.add(job.seed) or stream(job, *bench))
    studies = studies_of(request_(suite, SEARCHED, tmp_path, trials=8), store)
    found = search(studies, store)
    assert all(f.search.default_accuracy > 0.3 for f in found.values()), "a failed measurement would count as 0"
    assert seeds == {1000, 1001, 1002} == set(suite.seeds_of_tuning)
    assert not seeds & set(suite.seeds)


def test_the_value_of_a_trial_is_the_area_under_its_validation_accuracy(suite: Suite, tmp_path: Path, store: Store) -> None:
    (study,) = studies_of(request_(suite, "magnitude", tmp_path, trials=1, sparsities=[0.5, 0.8, 0.9]), store)
    search([study], store)
    (done,) = trials_of(study)
    measured = trial.execute(study.job)
    at = {(p.sparsity, p.finetune_epochs): measured[p.key]["accuracy"] for p in study.job.points}
    areas = [(0.3 * (at[0.5, f] + at[0.8, f]) / 2 + 0.1 * (at[0.8, f] + at[0.9, f]) / 2) / 0.4 for f in (0, 1)]
    assert done.value == pytest.approx(sum(areas) / 2)
    samples = trials.unpacked(done.user_attrs["samples"])
    assert len(samples) == len(Workbench(study.job).dataset.validation)
    assert samples.mean() == pytest.approx(done.value, abs=1 / 255)
    assert done.user_attrs["epochs"] == 3, "of fine-tuning: one for each sparsity"


def test_the_cost_is_what_was_spent(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are counted as the loop trains them, and compared with those that the loop was asked for."""
    (study,) = studies_of(request_(suite, "snip", tmp_path, trials=8), store)
    spent, fit = [0], methods.fit

    def counted(problem: Any, training: Any, recipe: Any, **more: Any) -> Any:
        spent[0] += recipe.epochs
        return fit(problem, training, recipe, **more)

    monkeypatch.setattr(methods, "fit", counted)
    found = search([study], store)["breast_cancer", "mlp", "snip"]
    assert found.search.epochs == spent[0] > 0


def test_pool_networks_are_trained_once_for_all_methods(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    dense = stages.dense

    def counted(bench: Workbench) -> Any:
        trained.append(bench.job.network)
        return dense(bench)

    monkeypatch.setattr(stages, "dense", counted)
    asked = request_(suite, "magnitude,random,obd,opd", tmp_path)
    studies_of(asked, store)
    assert len(trained) == len(set(trained)) == 3
    assert searches(asked, store.url)[0].jobs == []


def test_a_network_that_fails_is_a_bad_trial_and_the_others_go_on(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request_(suite, "magnitude", tmp_path, trials=10)
    (study,) = studies_of(asked, store)
    lost, real = set(study.pool[1].networks), Networks.load

    def failing(networks: Networks, key: str) -> Any:
        if key in lost:
            raise RuntimeError("it cannot be read")  # a network that is only missing would be trained again
        return real(networks, key)

    monkeypatch.setattr(Networks, "load", failing)
    found = search([study], store)["breast_cancer", "mlp", "magnitude"]
    broken = [t.value for t in trials_of(study) if t.params["training"] == study.pool[1].draw]
    assert broken
    assert set(broken) == {0.0}
    assert found.training != study.pool[1].training


def test_a_pool_replaces_members_whose_dense_network_breaks_down(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first draw cannot be trained at all, the second does no better than chance."""
    asked = request_(suite, "magnitude,obd", tmp_path)
    first = searches(asked, store.url)[1][0].pool
    fit = methods.fit

    def bad(problem: Any, training: Any, recipe: Any, **more: Any) -> Any:
        if training.lr == first[1].training["lr"]:
            raise FloatingPointError("the training loss is nan")
        state = fit(problem, training, recipe, **more)
        if training.lr == first[2].training["lr"]:
            for p in problem.model.parameters():
                p.data.zero_()
        return state

    monkeypatch.setattr(methods, "fit", bad)
    studies = studies_of(asked, store)
    assert [m.draw for m in studies[0].pool] == [0, 3, 4] == [m.draw for m in studies[1].pool]
    assert [m.draw for m in first] == [0, 1, 2]
    assert {s.key for s in studies} == {s.key for s in searches(asked, store.url)[1]}, "a study is named before its pool is known"
    assert studies_of(asked, store) == studies, "and what was found out is not found out again"


# --- what may win


def made_up(values: dict[Any, list[float]], spent: list[Any] | None = None) -> Callable[..., Any]:
    """In place of `trial.stream`: the accuracies of a job's points, by the draw of its training and its seed."""

    def stream(job: Any, bench: Any) -> Any:
        n = len(bench.dataset.validation)
        key = (job.setting.training["lr"], job.seed)
        for point, accuracy in zip(job.points, values[key], strict=True):
            bench.heartbeat(1)
            if spent is not None:
                spent.append(point)
            yield point, {"status": "ok", "accuracy": accuracy, "hits": torch.arange(n) < round(accuracy * n)}

    return stream


def test_a_trial_that_was_given_up_cannot_win(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four trials of (.95, .30) and a fifth given up at .90 over the low sparsity alone: Optuna keeps .90 as its value."""
    asked = request_(suite, "random_init", tmp_path, trials=5, pool=5, finetune_epochs=[0], tuning_seeds=1)
    (study,) = studies_of(asked, store)
    rates = [m.training["lr"] for m in study.pool]
    values = {(lr, 1000): [0.95, 0.30] for lr in rates}
    values[rates[4], 1000] = [0.90, 0.30]
    spent: list[Any] = []
    order = iter(range(5))
    monkeypatch.setattr(trial, "stream", made_up(values, spent))

    monkeypatch.setattr(Study, "candidate", lambda self, drawn: drawn | {"training": next(order)})
    found = search([study], store)["breast_cancer", "mlp", "random_init"]
    done = trials_of(study)
    assert [t.state.name for t in done] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert done[4].value == 0.90 > max(t.value for t in done[:4])
    assert found.training == study.pool[0].training
    assert (found.search.trials, found.search.epochs, len(spent)) == (5, 9, 9), (
        "the fifth was given up after its first sparsity, and cost that much"
    )


def test_the_defaults_stay_unless_they_are_beaten_beyond_the_noise(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate ahead by half a point, by luck of the first seed by 20, is not believed; one ahead by 25 on every seed is."""
    for name, ahead, chosen in (("obd", [0.20, 0.01, 0.0], False), ("opd", [0.25, 0.25, 0.24], True)):
        (study,) = studies_of(request_(suite, name, tmp_path, trials=8, pool=2, finetune_epochs=[0]), store)
        default, other = (m.training["lr"] for m in study.pool)
        values = {(default, seed): [0.6, 0.6] for seed in suite.seeds_of_tuning}
        values |= {(other, seed): [0.6 + d, 0.6 + d] for seed, d in zip(suite.seeds_of_tuning, ahead, strict=True)}
        monkeypatch.setattr(trial, "stream", made_up(values))
        monkeypatch.setattr(tune, "_train_missing", lambda job: None)
        order = itertools.cycle([0, 1])
        monkeypatch.setattr(Study, "candidate", lambda self, drawn, order=order: drawn | {"training": next(order)})
        found = search([study], store)["breast_cancer", "mlp", name]
        assert (found.training["lr"] == other) == chosen
        assert found.search.default_accuracy == pytest.approx(0.6)
        assert found.search.accuracy == pytest.approx(0.6 + (ahead[1] + ahead[2]) / 2 if chosen else 0.6)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)


def test_draws_do_not_depend_on_torch_nor_on_the_code(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release or an edited file is another study, with the same draws: what is chosen must not hang on that."""
    asked = request_(suite, "obd", tmp_path, trials=5, tuning_seeds=1)
    studies = []
    for version in ("2.90.0", "2.91.0"):
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(methods, "source_hash", lambda *_, version=version: version)
        (study,) = studies_of(asked, store)
        search([study], store)
        studies.append(study)
    assert studies[0].key != studies[1].key
    assert told(studies[0]) == told(studies[1])
    assert len({str(params) for params, _, _ in told(studies[0])}) > 3


# --- resuming


def test_a_killed_search_goes_on_to_the_same_end(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [Store(f"sqlite:///{tmp_path}/{name}.db") for name in ("undisturbed", "killed")]
    asked = request_(suite, "obd", tmp_path, trials=8)
    (whole,) = studies_of(asked, stores[0])
    tune.search(whole)

    killed = dataclasses.replace(whole, storage=stores[1].url)
    stream, calls = trial.stream, []

    def dies(job: Any, bench: Any) -> Any:
        calls.append(job)
        if len(calls) in (1, 4, 8):  # while the first trial runs, and later on
            raise KeyboardInterrupt
        return stream(job, bench)

    monkeypatch.setattr(trial, "stream", dies)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tune.search(killed)
        assert tune.found(killed) is None
    tune.search(killed)
    assert told(killed) == told(whole)
    assert tune.found(killed) == tune.found(whole)  # type: ignore[union-attr]


def test_more_trials_go_on_from_those_there_are(suite: Suite, tmp_path: Path, store: Store) -> None:
    """As if they had been asked for at first."""
    (few,) = studies_of(request_(suite, "obd", tmp_path, trials=4), store)
    first = tune.search(few)
    (more,) = studies_of(request_(suite, "obd", tmp_path, trials=8), store)
    assert more.key == few.key
    tune.search(more)
    assert tune.found(few) == first, "fewer trials asked for: the same answer as before"
    other = Store(f"sqlite:///{tmp_path}/other.db")
    at_once = dataclasses.replace(more, storage=other.url)
    tune.search(at_once)
    assert tune.found(at_once).search.default_accuracy == tune.found(more).search.default_accuracy  # type: ignore[union-attr]
    assert {str(t) for t in told(at_once)} <= {str(t) for t in told(more)}


def test_what_was_measured_is_not_measured_again(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One training configuration and nothing to fine-tune: every trial of `random` is the first again, and costs nothing."""
    (study,) = studies_of(request_(suite, "random", tmp_path, pool=1, finetune_epochs=[0], tuning_seeds=1), store)
    calls = []
    stream = trial.stream
    monkeypatch.setattr(trial, "stream", lambda job, bench: calls.append(1) or stream(job, bench))
    found = tune.search(study)
    assert (found.search.trials, len(calls)) == (3, 1)


def test_a_default_beyond_the_range_of_fine_tuning_is_kept(suite: Suite, tmp_path: Path, store: Store) -> None:
    (study,) = studies_of(request_(suite, "magnitude", tmp_path, trials=2, finetune_lr_scale=1.0), store)
    assert tune.search(study).search.trials == 2
    assert trials_of(study)[0].params["finetune_lr_scale"] == 1.0


# --- by the command line


def test_default_and_tuned_are_separate_rows_and_a_second_run_finds_all(tiny: Path, bench: Callable[..., tuple[int, str, str]]) -> None:
    command = ("run", "--suite", "tiny.toml", "--methods", "magnitude,snip", "--trials", "3", "--output", "out", "--workers", "1")
    code, out, err = bench(*command)
    assert (code, err) == (0, "")
    assert "tuning: 3 trials per method and block (data set and architecture), on validation data" in out
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
        assert row.dense_accuracy is not None, "of methods at initialisation too"
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
        "error: trials: must be greater than or equal to 0, got -1\n",
    )
    with pytest.raises(UserError, match="tuning_seed: tuning uses seed 1000, which is one of `seeds`"):
        narrowed(suite, seeds=[0, 1000])


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


def test_what_a_board_has_chosen_can_be_run_again_without_a_search(
    tiny: Path, bench: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its rows alone, in another store: the same tuned rows, and no study."""
    options = ("--suite", "tiny.toml", "--methods", "magnitude,snip", "--workers", "1", "--seeds", "0")
    bench("run", *options, "--trials", "2", "--output", "out")
    again = ("run", *options, "--tuned", "out", "--store", "sqlite:///other.db", "--output", "again")
    monkeypatch.setattr(tune, "search", None)
    assert bench(*(word.replace("other.db", "third.db").replace("again", "once") for word in again), "--tuned", "out/results.csv")[0] == 0
    code, _, err = bench(*again)
    assert (code, err) == (0, "")
    assert read_rows(Path("once/results.csv"))[-1].hyperparameters == read_rows(Path("again/results.csv"))[-1].hyperparameters
    first, second = (
        [dataclasses.replace(r, score_seconds=None, train_seconds=None) for r in read_rows(Path(f"{name}/results.csv"))]
        for name in ("out", "again")
    )
    assert first == second
    assert any(r.tuning == "tuned" for r in second)
    assert bench("run", *options, "--tuned", "nowhere") == (
        2, "", "error: --tuned 'nowhere': it contains neither results/*.csv nor results.csv\n",
    )  # fmt: skip
    code, _, err = bench("run", "--suite", "tiny.toml", "--methods", "random", "--tuned", "out")
    assert (code, err) == (2, "error: --tuned 'out': it has no tuned rows of random on breast_cancer/mlp\n")


def test_a_trial_whose_answer_was_lost_is_stored_once(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database carried it out, but the connection was lost before it said so: the repetition adds nothing."""
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.orm import Session

    study = studies_of(request_(suite, "random", tmp_path), store)[0]
    search([study], store)
    before, lost, commit = told(study), [], Session.commit

    def carried_out(session: Session) -> None:
        commit(session)
        if len(lost) < 2:
            lost.append(1)
            raise OperationalError("COMMIT", {}, Exception("database is locked"))

    first = trials_of(study)[0]
    again = optuna.trial.create_trial(
        params=first.params, distributions=first.distributions, value=first.value, user_attrs={**first.user_attrs, "candidate": 99}
    )
    stored = trials.Trials(study, trials.opened(study))
    monkeypatch.setattr(Session, "commit", carried_out)
    stored.add(again)
    assert len(lost) == 2
    assert len(told(study)) == len(before) + 1
    assert stored.candidate(99) is not None
    stored.add(again)
    assert len(told(study)) == len(before) + 1, "nor by another process"
