"""README, CONTRIBUTING and docs/: commands parse, names exist, cited rules exist, links lead somewhere, generated pages are complete."""

import ast
import csv
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import typer.main

import methods
from bench.cli.main import app
from bench.planning import catalogue, templates
from bench.publishing.datapackage import SCHEMAS
from bench.spec.suite import Suite, suites

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
EXECUTED = ["tutorial_network.md", "api.md"]  # their Python runs here, but for what needs the results of a command
NEEDS_RESULTS = ("bench.run", 'load("small")', "results/results.csv")
TRACKERS = ("SummaryWriter", "mlflow", "wandb")  # examples of packages that need not be installed: run with packages that record
COMMAND = re.compile(r"python -m bench ([^\n`#&|]+)")
PLACEHOLDERS = {"my_method", "METHOD", "NAME"}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, loaded as mkdocs loads it: with its folder among those to import from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module("hooks")


def code_blocks(text: str, *languages: str) -> list[str]:
    """The contents of fenced blocks of these languages."""
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if language in languages]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python -m bench ...`, in a block or in a sentence."""
    found = [shlex.split(said) for said in COMMAND.findall(text.replace("\\\n", " "))]
    return [words for words in found if words and words[0].islower()]


ALL_COMMANDS = sorted({(path.name, tuple(words)) for path in WRITTEN for words in commands(path.read_text(encoding="utf-8"))})


def test_commands_are_found() -> None:
    assert commands("x\n    python -m bench run --seeds 0 \\\n        --trials 0   # why\n") == [["run", "--seeds", "0", "--trials", "0"]]
    assert commands("`python -m bench list suites` and `python -m bench COMMAND`") == [["list", "suites"]]
    assert {words[0] for _, words in ALL_COMMANDS} >= {"run", "list", "check", "new", "compare", "publish", "verify", "export"}


@pytest.mark.parametrize(("file", "words"), ALL_COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value)
def test_a_command_is_one_of_the_program(file: str, words: tuple[str, ...]) -> None:
    group: Any = typer.main.get_command(app)
    _, command, rest = group.resolve_command(group.context_class(group, info_name="bench"), list(words))
    given = command.make_context(words[0], list(rest)).params
    names = [given[name] for name in ("methods", "method", "first", "second") if isinstance(given.get(name), str)]
    for name in (part for value in names for part in re.split(r",(?![^()]*\))", value)):
        if name.partition("@")[0] != "all" and name.partition("@")[0] not in PLACEHOLDERS:
            methods.get(name)
    suite = given.get("suite")
    assert suite is None or suite.endswith(".toml") or suite in {*suites(), *PLACEHOLDERS}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_python_in_a_page_uses_names_that_exist(path: Path) -> None:
    for block in code_blocks(path.read_text(encoding="utf-8"), "python"):
        for dotted in sorted(names_of(ast.parse(block))):
            assert exists(dotted), f"{path.name}: {dotted} does not exist"


def names_of(tree: ast.AST) -> Iterator[str]:
    """The dotted names below `methods` and `bench` that a snippet uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("methods", "bench"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if re.fullmatch(r"(methods|bench)(\.\w+)+", dotted):
                yield dotted


def exists(dotted: str) -> bool:
    """Whether a public name can be reached; submodules are imported."""
    first, *rest = dotted.split(".")
    found: Any = importlib.import_module(first)
    for k, name in enumerate(rest):
        if not hasattr(found, name) and inspect.ismodule(found) and hasattr(found, "__path__"):
            try:
                importlib.import_module(".".join([first, *rest[: k + 1]]))
            except ImportError:
                return False
        found = getattr(found, name, None)
        if found is None or name.startswith("_"):
            return False
    return True


def test_a_name_that_does_not_exist_is_found() -> None:
    assert exists("methods.prune")
    assert exists("bench.export.load")
    assert not exists("methods.prunes")
    assert not exists("methods.core._nothing")


@pytest.mark.parametrize("name", EXECUTED)
def test_python_in_a_tutorial_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = code_blocks((DOCS / name).read_text(encoding="utf-8"), "python")
    blocks = [block for block in blocks if not any(word in block for word in (*NEEDS_RESULTS, *TRACKERS))]
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), space)
    assert capsys.readouterr().out


@pytest.mark.parametrize(("package", "call"), [("torch.utils.tensorboard", "add_scalar"), ("mlflow", "log_metric"), ("wandb", "log")])
def test_trackers_get_the_loss_of_every_epoch(package: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = MagicMock()
    monkeypatch.setitem(sys.modules, package, fake)
    blocks = code_blocks((DOCS / "api.md").read_text(encoding="utf-8"), "python")
    (block,) = (block for block in blocks if f"import {package}" in block or f"from {package}" in block)
    model, x, y = torch.nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    exec(compile(block, "api.md", "exec"), {"methods": methods, "model": model, "batches": [(x, y)]})
    calls = [c for c in fake.mock_calls if c[0].endswith(call)]
    assert len(calls) == 30
    epochs = [c.kwargs["step"] if "step" in c.kwargs else c.args[2] for c in calls]
    assert epochs == list(range(1, 31))


def test_the_hyperparameters_of_a_row_are_read_as_the_tutorial_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = code_blocks((DOCS / "tutorial_verify.md").read_text(encoding="utf-8"), "python")
    exec(compile(block, "tutorial_verify.md", "exec"), {})
    assert "weight_decay" in capsys.readouterr().out


def test_the_template_in_the_tutorial_keeps_the_contract(clean_registry: None) -> None:
    for block in code_blocks((DOCS / "tutorial_criterion.md").read_text(encoding="utf-8"), "python"):
        exec(compile(block, "tutorial_criterion.md", "exec"), {"__name__": "tutorial"})
    for name in ("my_method", "relative_growth"):
        findings = methods.check(name)
        assert [finding.error for finding in findings if finding.error] == []
        assert len(findings) > 5


BOARDS = {
    "MLP 30-100-100-2, breast_cancer": ("spam", "breast_cancer", "mlp"),
    "MLP 784-256-10, MNIST": ("spam", "mnist", "mlp_256"),
    "LeNet-5, MNIST": ("spam-60000", "mnist", "lenet5"),
}


def test_the_experiments_of_spam_have_the_figures_of_the_boards() -> None:
    """Means of accuracies, by plain loops over the published rows."""
    text = (DOCS / "spam_experiments.md").read_text(encoding="utf-8")
    lines = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    start = next(k for k, cells in enumerate(lines) if cells[0] == "experiment")
    header, experiment, compared = lines[start], "", 0
    for cells in lines[start + 2 : start + 13]:
        experiment = cells[0] or experiment
        if experiment not in BOARDS:
            continue
        board, dataset, architecture = BOARDS[experiment]
        for method, said in zip(header[3:], cells[3:], strict=True):
            file = ROOT / "leaderboards" / board / "results" / f"{method}.csv"
            rows = [r for r in csv.DictReader(file.open(encoding="utf-8")) if (r["dataset"], r["architecture"]) == (dataset, architecture)]
            found = [100 * float(r["accuracy"]) for r in rows if f"{100 * float(r['sparsity']):g} %" == cells[2]]
            assert len(found) == 3
            assert f"{sum(found) / 3:.1f}" == said, f"{experiment} {method} {cells[2]}"
            compared += 1
    assert compared == 6 * 4


def test_the_suite_in_the_docs_is_one(tmp_path: Path) -> None:
    from bench.spec.suite import load_suite

    block, blocks, recipe = code_blocks((DOCS / "suites.md").read_text(encoding="utf-8"), "toml")
    (tmp_path / "my_suite.toml").write_text(recipe + block, encoding="utf-8")
    found = load_suite(str(tmp_path / "my_suite.toml"))
    assert found.architecture["lenet5"].batch_size == 64
    assert (found.optimizer, found.label_smoothing, found.mixup) == ("adamw", 0.1, 0.2)
    assert {method.training for method in catalogue.select_methods(",".join(found.methods))} == {"decoupled"}
    (tmp_path / "two_sizes.toml").write_text(blocks, encoding="utf-8")
    sizes = load_suite(str(tmp_path / "two_sizes.toml"))
    assert (sizes.trials_of("digits", "lenet5"), sizes.trials_of("mnist", "lenet5")) == (10, 0)
    assert sizes.extent(early=True) == ((0.9,), (0,))


def cited_rules() -> dict[int, str]:
    """Rule number -> one place that cites it."""
    files = [*WRITTEN, *(f for folder in ("bench", "methods", "benchmarks", "tests") for f in sorted((ROOT / folder).rglob("*.py")))]
    cited: dict[int, str] = {}
    for file in files:
        for number in re.findall(r"\brules? (\d+)", file.read_text(encoding="utf-8"), re.I):
            cited.setdefault(int(number), str(file.relative_to(ROOT)))
    return cited


def test_every_rule_that_is_cited_is_in_the_protocol() -> None:
    rules = re.findall(r"^## Rule (\d+)\. .* \{ #rule-(\d+) \}$", (DOCS / "protocol.md").read_text(encoding="utf-8"), re.M)
    assert [(int(number), int(anchor)) for number, anchor in rules] == [(n, n) for n in range(1, 15)]
    assert {number: place for number, place in cited_rules().items() if not 1 <= number <= 14} == {}
    assert {4, 6, 8, 9, 14} <= set(cited_rules())


def test_every_link_leads_somewhere(hooks: ModuleType) -> None:
    generated = hooks.pages()
    for path in WRITTEN:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            file, _, anchor = target.partition("#")
            page = (path.parent / file).resolve() if file else path
            known = page.exists() or (page.is_relative_to(DOCS) and str(page.relative_to(DOCS)) in generated)
            assert known, f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors(page.read_text(encoding="utf-8")), f"{path.name}: {target}"


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings: those given in braces, or else made of the words, as MkDocs makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", markdown, re.M):
        given = re.search(r"\{ #([\w-]+) \}$", heading)
        found.add(given[1] if given else re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()))
    return found


def test_every_registered_name_has_its_page(hooks: ModuleType) -> None:
    pages = hooks.pages()
    for kind in ("methods", "criteria", "trainings", "granularities"):
        for name in methods.names(kind):
            page = pages[f"{kind}/{name.replace(':', '-')}.md"]
            assert f"`{name}`" in page.splitlines()[0]
            assert f"[`{name}`]" in pages[f"{kind}/index.md"]
    (line,) = [line for line in pages["trainings/map.md"].splitlines() if line.startswith("| `weight_decay` |")]
    assert "| `0.001` | a finite number >= 0 | yes, in [1e-05, 0.02], on a logarithmic scale |" in line
    assert re.search(r"\| `n_rounds` \| [^|]+ \| `100` \|", pages["methods/snip_iterative.md"])
    assert "no: fixed by the name" in pages["methods/snip_iterative.md"]


@pytest.mark.parametrize("schema", list(SCHEMAS))
def test_every_column_is_in_the_glossary(hooks: ModuleType, schema: str) -> None:
    shown = hooks.on_page_markdown(f"<!-- generated: {schema}_columns -->")
    for field in SCHEMAS[schema]["fields"]:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"| `{field['name']}` |")]
        assert field["type"] in line
        assert field["description"].replace("|", "\\|") in line
        assert field.get("unit", "") in line
    assert f"<!-- generated: {schema}_columns -->" in (DOCS / "glossary.md").read_text(encoding="utf-8")


def test_every_option_is_in_the_reference(hooks: ModuleType, bench: Any) -> None:
    shown = hooks.on_page_markdown("<!-- generated: command_line -->")
    sections = dict(re.findall(r"^## `python -m bench ([\w ]+)`\n(.*?)(?=^## |\Z)", shown, re.M | re.S))
    assert {"run", "verify", "export"} <= set(sections)
    for name, section in sections.items():
        _, text, _ = bench(*name.split(), "--help")
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.partition("Options:")[2])) - {"--help"}
        assert {option for option in options if f"`{option}`" not in section} == set(), name


def test_every_suite_key_is_in_the_reference(hooks: ModuleType) -> None:
    shown = hooks.on_page_markdown("<!-- generated: suite_keys -->")
    for name, field in Suite.model_fields.items():
        (line, *_) = [line for line in shown.splitlines() if line.startswith(f"| `{name}` |")]
        assert (field.description or "") in line.replace("\\|", "|")
        assert ("| required |" in line) == field.is_required()
    assert "| `sparsities` | list: number, ≥ 0, < 1 | required |" in shown
    assert '| `optimizer` | text, sgd, adam or adamw | `"sgd"` |' in shown


def test_a_bar_in_a_cell_does_not_end_it(hooks: ModuleType) -> None:
    assert hooks.table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |\n"
    assert hooks.escaped("`a_b` c_d <e> *f*") == r"`a_b` c\_d \<e> \*f\*"


def test_the_citation_names_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    for key, value in {
        "cff-version": "1.2.0",
        "title": project["name"],
        "version": project["version"],
        "license": project["license"],
    }.items():
        assert f"{key}: {value}" in lines


def test_a_template_that_moves_into_the_project_is_found(tmp_path: Path) -> None:
    """As CONTRIBUTING says: put the file into methods/criteria/, nothing else has to be changed."""
    shutil.copytree(ROOT / "methods", tmp_path / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    templates.write_template("my_method", tmp_path / "methods" / "criteria")
    asked = "import methods; print(methods.__file__, methods.get('my_method').criterion)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "methods" / "__init__.py"), "my_method"], done.stderr


def test_the_list_of_architectures_is_that_of_its_file() -> None:
    folder = ROOT / "benchmarks"
    command = [sys.executable, str(folder / "breadth_table.py"), str(folder / "breadth.csv")]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    written = [line for line in (ROOT / "docs" / "breadth.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert written == [line for line in made.splitlines() if line]
    with (folder / "breadth.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for step in ("weight", "spam", "torch-pruning"):  # counted a second time, from the cells of the page
        place = [cell.strip() for cell in written[0].split("|")].index(step)
        shown = [line.split("|")[place].strip() for line in written[2 : written.index(next(w for w in written if "**works**" in w))]]
        assert shown.count("works") == sum(row["step"] == step and row["outcome"] == "works" for row in rows)
