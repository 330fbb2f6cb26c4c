"""Networks, data and checkpoints of the user's own through the command line and `bench.run`: what runs, and what is served again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bench as api
from bench.execution.local import Local
from bench.export import load
from bench.networks import build
from bench.storage.results_csv import read_rows
from bench.trial import trial
from bench.trial.job import Job
from tests.bench.own_files import BLOCK, NET, run_here, write

Bench = Callable[..., tuple[int, str, str]]
RUN = (
    "run", "--suite", "tiny.toml", "--seeds", "0", "--sparsities", "0.5", "--finetune-epochs", "0", "--epochs", "1",
    "--methods", "magnitude", "--workers", "1", "--output", "out",
)  # fmt: skip
OWN = ("--datasets", "my_data.py:load", "--architectures", "my_net.py:build")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run here: worker processes load what they need in the same way (tested once below), and take seconds to start."""
    monkeypatch.setattr(Local, "run", run_here)


@pytest.fixture
def files(tiny: Path) -> Path:
    """my_net.py with own_block.py next to it, and my_data.py, in the working folder of the suite."""
    write(tiny)
    return tiny


def rows(bench: Bench, *more: str) -> list[Any]:
    code, out, error = bench(*RUN, *(more or OWN))
    found = read_rows(Path("out/results.csv"))
    assert code == any(row.status == "failed" for row in found), (out, error)
    return found


def measured(found: list[Any]) -> list[tuple[Any, ...]]:
    return [(row.method, row.sparsity, row.finetune_epochs, row.status, row.nll, row.kept_weights) for row in found]


def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the label of every job is added that is computed from now on."""
    labels: list[str] = []
    real = trial._results

    def counted(job: Job, bench: Any) -> Any:
        labels.append(job.label)
        return real(job, bench)

    monkeypatch.setattr(trial, "_results", counted)
    return labels


def test_own_network_and_data_are_checked_run_and_served_again(files: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my_net.py:build", "my_data.py:load"):
        code, out, _ = bench("check", name)
        assert code == 0, out
        assert f" {name}\n" in out
        assert "FAIL" not in out
    first = rows(bench)
    assert {row.status for row in first} <= {"ok", "collapsed"}
    assert {(row.dataset, row.architecture, row.initial_weights) for row in first} == {("my_data.py:load", "my_net.py:build", "random")}
    assert {row.prunable_weights for row in first} == {8 * 12 + 12 * 3}
    labels = computed(monkeypatch)
    assert measured(rows(bench)) == measured(first)
    (files / "my_net.py").write_text("# said\n" + NET)
    assert measured(rows(bench)) == measured(first)
    assert labels == [], "neither a second run nor a comment computes anything"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("my_net.py", "12, classes", "12, classes, bias=False"),
        ("own_block.py", "x.relu()", "x.tanh()"),  # the same tensors and the same repr
        ("my_data.py", "manual_seed(0)", "manual_seed(1)"),
    ],
)
def test_an_edit_is_other_rows_in_the_same_process(files: Path, bench: Bench, file: str, old: str, new: str) -> None:
    first = rows(bench)
    text = (files / file).read_text()
    (files / file).write_text(text.replace(old, new))
    second = rows(bench)
    assert len(first) == len(second) == 2
    assert all(a.nll != b.nll for a, b in zip(first, second, strict=True))
    (files / file).write_text(text)
    assert measured(rows(bench)) == measured(first)


def test_a_checkpoint_that_the_function_loads_is_in_the_key(files: Path, bench: Bench) -> None:
    (files / "my_net.py").write_text(
        NET.replace("    return ", "    net = ") + "    from safetensors.torch import load_file\n"
        "    net[1].load_state_dict(load_file('first.safetensors'))\n    return net\n"
    )
    found = []
    for value in (0.1, 0.2):
        save_file({"weight": torch.full((12, 8), value), "bias": torch.zeros(12)}, "first.safetensors")
        found.append(measured(rows(bench)))
    assert found[0] != found[1]


def test_an_edited_network_of_a_plug_in_is_other_rows(files: Path, bench: Bench) -> None:
    text = (
        "from timm.models import register_model\nfrom torch import nn\nfrom own_block import block\n\n@register_model\n"
        "def cli_plugged_net(pretrained=False, num_classes=10, in_chans=3, img_size=None, **kwargs):\n"
        "    return nn.Sequential(nn.Flatten(), *block((in_chans, *img_size)), nn.Linear(12, num_classes))\n"
    )
    (files / "plug.py").write_text(text)
    options = ("--plugin", "plug.py", "--datasets", "my_data.py:load", "--architectures", "cli_plugged_net")
    first = rows(bench, *options)
    (files / "own_block.py").write_text(BLOCK.replace("x.relu()", "x.tanh()"))
    second = rows(bench, *options)
    assert {row.status for row in [*first, *second]} <= {"ok", "collapsed"}
    assert all(a.nll != b.nll for a, b in zip(first, second, strict=True))


def test_in_a_notebook_too_and_in_worker_processes(files: Path, monkeypatch: pytest.MonkeyPatch, clean_registry: None) -> None:
    monkeypatch.undo()  # real workers, but for the working folder
    monkeypatch.chdir(files)
    options: dict[str, Any] = {
        "suite": "tiny.toml", "datasets": "my_data.py:load", "architectures": ["my_net.py:build"], "methods": ["magnitude"], "seeds": 0,
        "sparsities": 0.5, "finetune_epochs": 0, "workers": 1, "progress": False,
    }  # fmt: skip
    first = api.run(**options)
    (files / "own_block.py").write_text(BLOCK.replace("x.relu()", "x.tanh()"))
    second = api.run(**options)
    assert [*first["status"], *second["status"]] == ["ok"] * 4
    assert (first["nll"] != second["nll"]).all()


def test_an_edit_during_a_run_stops_its_jobs(files: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows would have the key of the code before."""
    real = trial._results

    def edited(job: Job, workbench: Any) -> Any:
        (files / "own_block.py").write_text(BLOCK.replace("x.relu()", "x.tanh()"))
        return real(job, workbench)

    monkeypatch.setattr(trial, "_results", edited)
    found = rows(bench)
    assert {row.status for row in found} == {"failed"}
    assert "code of your own has changed since this run was started (my_net.py:build, my_data.py:load); start it again" in found[0].error


def test_an_edited_criterion_during_a_run_stops_its_jobs(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench("new", "cli_mine")[0] == 0
    real = trial._results

    def edited(job: Job, workbench: Any) -> Any:
        if job.criterion:
            Path("cli_mine.py").write_text(Path("cli_mine.py").read_text().replace("nested: ClassVar = True", "nested: ClassVar = False"))
        return real(job, workbench)

    monkeypatch.setattr(trial, "_results", edited)
    found = rows(bench, "--plugin", "cli_mine.py", "--methods", "cli_mine")
    assert {row.status for row in found if row.criterion} == {"failed"}
    assert {row.status for row in found if not row.criterion} == {"ok"}


# --- checkpoints


def checkpoint(name: str = "w.safetensors", seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = build.create("my_net.py:build", (1, 2, 4), 3).state_dict()
    save_file(state, name)
    return state


def test_a_checkpoint_is_where_training_starts(files: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    checkpoint()
    weights = ("--weights", "w.safetensors")
    random, given = rows(bench), rows(bench, *OWN, *weights)
    assert {row.initial_weights for row in given} == {"sha256:" + hashlib.sha256(Path("w.safetensors").read_bytes()).hexdigest()}
    assert all(a.nll != b.nll for a, b in zip(random, given, strict=True))
    labels = computed(monkeypatch)
    Path("w.safetensors").rename("moved.safetensors")
    assert measured(rows(bench, *OWN, "--weights", "moved.safetensors")) == measured(given)
    assert labels == [], "the path does not matter"
    checkpoint("moved.safetensors", seed=1)
    assert measured(rows(bench, *OWN, "--weights", "moved.safetensors")) != measured(given), "the content does"
    assert labels


def test_a_suite_names_a_checkpoint_of_one_architecture(files: Path, bench: Bench) -> None:
    checkpoint()
    text = Path("tiny.toml").read_text()
    Path("tiny.toml").write_text(text + '\n[architecture."my_net.py:build"]\nweights = "w.safetensors"\n')
    found = rows(bench, "--datasets", "my_data.py:load", "--architectures", "my_net.py:build,mlp")
    assert {(row.architecture, row.initial_weights[:7]) for row in found} == {("my_net.py:build", "sha256:"), ("mlp", "random")}
    by_option = rows(bench, *OWN, "--weights", "w.safetensors")
    assert measured(by_option) == measured([row for row in found if row.architecture != "mlp"])


@pytest.mark.parametrize(
    ("more", "options", "said"),
    [
        ("", ("--architectures", "my_net.py:build,mlp"), "a checkpoint is for one architecture, and there are 2: my_net.py:build, mlp"),
        ("pretrained = true\n", ("--architectures", "my_net.py:build"), "weights: a network starts either from a checkpoint or"),
        ("", ("--architectures", "mlp"), "weights 'w.safetensors': the tensor '5.weight' of architecture 'mlp' is missing"),
    ],
)  # fmt: skip
def test_a_wrong_use_of_a_checkpoint_is_one_line(files: Path, bench: Bench, more: str, options: tuple[str, ...], said: str) -> None:
    checkpoint()
    Path("tiny.toml").write_text(more + Path("tiny.toml").read_text())
    code, _, error = bench(*RUN, "--datasets", "my_data.py:load", *options, "--weights", "w.safetensors")
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert said in error


def test_an_own_network_from_a_checkpoint_is_exported_and_loaded(files: Path, bench: Bench) -> None:
    checkpoint()
    names = ("--dataset", "my_data.py:load", "--architecture", "my_net.py:build", "--weights", "w.safetensors")
    for granularity, folder in (("weight", "masked"), ("channel", "small")):
        options = ("--granularity", granularity, "--sparsity", "0.5", "--output", folder)
        code, out, error = bench("export", "--suite", "tiny.toml", "--method", "magnitude", *names, *options)
        assert code == 0, (out, error)
        card = json.loads(Path(folder, "card.json").read_text())
        assert card["architecture"]["name"] == "my_net.py:build"
        assert card["row"]["initial_weights"].startswith("sha256:")
        with pytest.raises(ValueError, match=r"names the network 'my_net\.py:build', whose code is not executed: .*load\(folder, network="):
            load(folder)
        from methods.registry.plugins import import_file

        made = import_file("my_net.py")[0].build
        state = load_file(f"{folder}/model.safetensors")
        for network in (made, made(3, (1, 2, 4))):
            model, _ = load(folder, network=network)
            assert {n: t.tolist() for n, t in model.state_dict().items()} == {n: t.tolist() for n, t in state.items()}
        with pytest.raises(ValueError, match="holds the weights of another network"):
            load("masked", network=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3)))
    code, out, error = bench("export", "--suite", "tiny.toml", "--method", "magnitude", *names, "--sparsity", "0.5")
    assert code == 0, (out, error)
    assert [folder.name for folder in Path("exported").iterdir()] == ["my_data.py-load-my_net.py-build-magnitude-weight-0.5"]


# --- lists, checks and templates


def test_lists_say_the_forms(bench: Bench) -> None:
    for what in ("architectures", "datasets"):
        out = bench("list", what)[1]
        assert "FILE.py:NAME" in out
    assert "timm:NAME" in out
    assert "hf:NAME" in out


@pytest.mark.parametrize("kind", ["architecture", "dataset"])
def test_a_template_passes_its_check_and_runs_as_it_says(tiny: Path, bench: Bench, kind: str) -> None:
    code, out, _ = bench("new", "mine", "--kind", kind)
    assert code == 0
    check, run = (line.split("python -m bench ")[1].split() for line in out.splitlines()[1:])
    code, out, _ = bench(*check)
    assert code == 0, out
    code, out, error = bench(*run, "--suite", "tiny.toml", "--seeds", "0", *(("--datasets", "digits") if kind == "architecture" else ()))
    assert code == 0, error
    code, _, error = bench("new", "mine", "--kind", "dataste")
    assert code == 2
    assert "unknown kind 'dataste' (did you mean 'dataset'?); available: criterion, " in error


@pytest.mark.parametrize(
    ("text", "name", "failing", "said"),
    [
        ("import random\nfrom torch import nn\ndef build(classes):\n    m = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
         "    m.register_buffer('x', __import__('torch').tensor(random.random()))\n    return m\n", "build",
         "makes a new module with the same initial weights for the same seed", "draw them from torch's global generator"),
        ("from torch import nn\ndef build(classes):\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
         "nn.LazyBatchNorm1d())\n", "build", "makes a module with finite outputs (n, classes)", "its output for 2 examples is (2, 3)"),
        ("from torch import nn\ndef build(classes, input_shape):\n    import math\n"
         "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes)).requires_grad_(False)\n", "build",
         "has parameters to train", "no parameter requires a gradient"),
        ("import torch\ndef load():\n    part = (torch.rand(40, 1, 4, 4), torch.arange(40) % 2)\n    return part, part\n", "load",
         "returns the same examples in every call", "fix the seed"),
        ("import torch\ndef load():\n    part = (torch.zeros(40, 1, 4, 4), torch.arange(40) % 2 + 1)\n    return part, part\n", "load",
         "labels are 0 to classes - 1, in every part", "no example with the label 0"),
        ("def load():\n    return 1\n", "load", "returns train and test", "returned a int"),
    ],
)  # fmt: skip
def test_a_broken_file_fails_its_check(tiny: Path, bench: Bench, text: str, name: str, failing: str, said: str) -> None:
    Path("broken.py").write_text(text)
    code, out, _ = bench("check", f"broken.py:{name}")
    assert code == 1
    (line,) = [line for line in out.splitlines() if "FAIL" in line]
    assert failing in line
    assert said in line
    assert "1 check failed" in out
