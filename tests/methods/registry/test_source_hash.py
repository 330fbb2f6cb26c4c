"""The hash of code: what an edit changes, and what it leaves alone, on a package made for the test and on ours."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import methods
from methods.registry import source_hash

FILES = {
    "__init__.py": "from made.core import base\nfrom made.other import unused as passed\nVERSION = 1\n",
    "core.py": '"""Core."""\n\n\ndef base():\n    """Say."""\n    return 1  # one\n',
    "deep.py": "def value():\n    return 3\n",
    "other.py": "def unused():\n    return 2\n",
    "inner/__init__.py": "from made.inner.leaf import leaf\n",
    "inner/leaf.py": "from .. import base as again\nfrom ..deep import value\n\n\ndef leaf():\n    return again() + value()\n",
    "direct.py": "import made\n\n\ndef run():\n    return made.base()\n",
    "aliased.py": "import made as m\nimport made.inner as i\n\n\ndef run():\n    return m.base() + i.leaf()\n",
    "late.py": "def run():\n    from made.inner import leaf\n\n    return leaf()\n",
    "alone.py": "def run():\n    return 0\n",
    "whole.py": "import made\n\n\ndef run():\n    return made.VERSION\n",
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "made"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "made"]:
        del sys.modules[name]


def fresh(*roots: ModuleType | type) -> str:
    """The hash of what is on the disk now, where `source_hash` stays with what was imported."""
    return source_hash.code_hash(source_hash.source_files(*roots))


USES = {  # root -> the files whose code it executes
    "direct": {"direct.py", "core.py"},
    "aliased": {"aliased.py", "core.py", "inner/leaf.py", "deep.py"},
    "late": {"late.py", "inner/leaf.py", "core.py", "deep.py"},
    "alone": {"alone.py"},
    "inner.leaf": {"inner/leaf.py", "core.py", "deep.py"},
    "whole": {"whole.py", "__init__.py", "core.py", "other.py"},  # it names what the package itself makes
}


@pytest.mark.parametrize("root", USES)
def test_an_edit_counts_where_the_code_is_executed_and_nowhere_else(made: Path, root: str) -> None:
    module = importlib.import_module(f"made.{root}")
    before = fresh(module)
    for name, text in FILES.items():
        file = made / name
        file.write_text(text + "\nADDED = 1\n")
        assert (fresh(module) != before) == (name in USES[root]), name
        file.write_text(text)
    assert fresh(module) == before


def test_comments_docstrings_and_layout_do_not_count(made: Path) -> None:
    module = importlib.import_module("made.direct")
    before = fresh(module)
    (made / "core.py").write_text('"""Another."""\n\ndef base():\n    "Said otherwise."\n\n    return (1)\n# end\n')
    assert fresh(module) == before
    (made / "core.py").write_text("def base():\n    return 2\n")
    assert fresh(module) != before


def test_a_process_stays_with_the_code_that_it_has_imported(made: Path) -> None:
    module = importlib.import_module("made.direct")
    first = methods.source_hash(module)
    (made / "core.py").write_text("def base():\n    return 2\n")
    assert methods.source_hash(module) == first


def test_a_plug_in_is_its_own_file_and_what_it_uses_of_this_package(tmp_path: Path, clean_registry: None) -> None:
    file = tmp_path / "mine.py"
    text = (
        "from dataclasses import dataclass\nimport methods\nfrom methods.curvature import curvature\n\n"
        '@methods.register("mine")\n@dataclass(frozen=True, kw_only=True)\nclass Mine(methods.Criterion):\n    """Mine."""\n'
    )
    file.write_text(text)
    methods.load_plugin(file)
    cls = methods.lookup("criteria", "mine")
    before = fresh(cls)
    file.write_text(text + "# said\n")
    assert fresh(cls) == before
    file.write_text(text + "    nested = False\n")
    assert fresh(cls) != before


def imports(file: Path, root: Path) -> set[Path]:
    """The files of our packages that a file names in an import, by regular expressions: `from a.b import c`, `import a.b`."""
    found = set()
    for package, names in re.findall(r"^\s*from ((?:bench|methods)[.\w]*) import (\([^)]*\)|.*)", file.read_text(), flags=re.M):
        for name in ["", *re.findall(r"\w+", names)]:
            path = root.joinpath(*package.split("."), name).with_suffix(".py")
            found |= {path} if path.is_file() else set()
    return found


def test_a_job_is_made_of_everything_that_it_imports() -> None:
    """No list by hand: whatever a module of the job names in an import, by another reading of the files, is in the hash's files."""
    from bench.trial import trial

    root = Path(trial.__file__).resolve().parents[2]
    found = source_hash.source_files(trial)
    names = {path.relative_to(root).as_posix() for path in found}
    assert {"bench/trial/trial.py", "bench/trial/workbench.py", "bench/networks/classics.py", "bench/data/sources.py"} <= names
    assert {f"methods/core/{name}.py" for name in ("training_loop", "cutting", "interface", "hyperparameters")} <= names
    for path in found:
        assert imports(path, root) <= found, path
    assert not {name for name in names if name.startswith(("methods/criteria/", "methods/training/"))}, "those are in each method's own"
    outside = ("bench/ranking/", "bench/planning/", "bench/cli/", "bench/publishing/", "methods/checking/")
    assert not {name for name in names if name.startswith(outside)}


def test_the_code_of_a_job_decides_every_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An edited loop is another dense network under `map` too, and other rows of every method."""
    from bench.planning import catalogue, cells
    from bench.planning.plan import plan
    from bench.planning.request import Request
    from bench.spec.suite import load_suite
    from bench.storage.rows import Store
    from bench.trial.job import Environment
    from tests.bench.suites import narrowed

    suite = narrowed(load_suite("digits"), datasets=["breast_cancer"], seeds=[0], sparsities=[0.9], trials=0)
    store = Store(f"sqlite:///{tmp_path}/store.db")

    def keys(**place: int) -> set[str]:
        asked = Request(suite, catalogue.select_methods("magnitude,snip"), Environment("cpu", None, tmp_path, **place))
        made = plan(asked, store)
        return {*made.expected, *(job.network for job in made.jobs)}

    before = keys()
    assert keys() == before
    assert not keys(threads=2) & before
    real = methods.source_hash
    plain = methods.lookup("trainings", "map")
    assert methods.source_hash(cells.trial, plain) != methods.source_hash(plain)
    monkeypatch.setattr(methods, "source_hash", lambda *roots: real(*roots) + ("edited" if cells.trial in roots else ""))
    assert not keys() & before
    monkeypatch.setattr(methods, "source_hash", real)
    monkeypatch.setattr(cells.networks, "tensors", lambda *_: "blocks.0.weight (2, 2)")
    assert not keys() & before
    monkeypatch.undo()
    for package in ("timm", "torchmetrics"):
        monkeypatch.setattr(cells, "versions", lambda package=package: {package: "0"})
        assert not keys() & before
