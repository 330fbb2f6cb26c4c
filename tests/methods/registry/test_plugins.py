"""Files imported by their path: again after an edit of the file or of a module next to it, and never half."""

import importlib
import sys
from pathlib import Path

import pytest

import methods
from methods.registry.plugins import import_file

pytestmark = pytest.mark.usefixtures("clean_registry")

CRITERION = """
from dataclasses import dataclass
import methods
from {module} import SIGN

@methods.register("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(methods.Criterion):
    '''s = SIGN * |w|.'''

    def score(self, problem):
        return methods.Scores({{n: SIGN * w.detach().abs() for n, w in problem.weights.items()}})
"""


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_module_next_to_a_plug_in_decides_its_key_and_its_code(tmp_path: Path) -> None:
    write(tmp_path, mine=CRITERION.format(module="own_sign", name="signed"), own_sign="SIGN = 1\n")
    assert methods.load_plugin(tmp_path / "mine.py") == ["signed"]
    first = methods.lookup("criteria", "signed")
    key = methods.source_hash(first)
    write(tmp_path, own_sign="SIGN = 2\n")  # the same size and, here, the same second: compiled files must not be used
    assert methods.load_plugin(tmp_path / "mine.py") == ["signed"]
    second = methods.lookup("criteria", "signed")
    assert second is not first
    assert methods.source_hash(second) != key
    assert sys.modules["own_sign"].SIGN == 2
    write(tmp_path, own_sign="SIGN = 2  # said\n")
    assert methods.load_plugin(tmp_path / "mine.py") == []


def test_a_module_that_was_imported_before_an_edit_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: import a module, edit it, then use a file that imports it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, net="from own_seen import VALUE\n", own_seen="VALUE = 1\n")
    assert importlib.import_module("own_seen").VALUE == 1
    write(tmp_path, own_seen="VALUE = 2\n")
    assert import_file(tmp_path / "net.py")[0].VALUE == 2


def test_a_name_that_a_plug_in_no_longer_registers_is_gone(tmp_path: Path) -> None:
    write(tmp_path, mine=CRITERION.format(module="own_sign", name="before"), own_sign="SIGN = 1\n")
    methods.load_plugin(tmp_path / "mine.py")
    write(tmp_path, mine=CRITERION.format(module="own_sign", name="after"))
    assert methods.load_plugin(tmp_path / "mine.py") == ["after"]
    assert "after" in methods.names()
    assert "before" not in methods.names()


def test_an_edit_that_breaks_a_plug_in_leaves_it_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, mine=CRITERION.format(module="own_sign", name="kept"), own_sign="SIGN = 1\n")
    methods.load_plugin(tmp_path / "mine.py")
    before, modules = methods.lookup("criteria", "kept"), dict(sys.modules)
    write(tmp_path, own_sign="SIGN = 1 / 0\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"mine\.py cannot be imported: ZeroDivisionError: division by zero$"):
            methods.load_plugin(tmp_path / "mine.py")
    assert methods.lookup("criteria", "kept") is before
    assert {name: sys.modules.get(name) for name in modules} == modules


@pytest.mark.parametrize(
    ("edited", "text"),
    [
        ("nets/block", "WIDTH = 9\n"),
        ("nets/__init__", "from nets.block import WIDTH as SIZE\nOTHER = 1\n"),
        ("nets/inner/leaf", "DEPTH = 9\n"),
        ("helper", "from nets import SIZE\nfrom nets.inner import leaf\nVALUE = -SIZE\n"),
    ],
)
def test_imports_are_followed_into_modules_and_packages_of_the_folder(tmp_path: Path, edited: str, text: str) -> None:
    write(
        tmp_path, net="import helper\nVALUE = helper.VALUE\n", helper="from nets import SIZE\nfrom nets.inner import leaf\nVALUE = SIZE\n",
        stranger="UNUSED = 1\n", **{"nets/__init__": "from .block import WIDTH as SIZE\n", "nets/block": "WIDTH = 3\n"},
        **{"nets/inner/__init__": "", "nets/inner/leaf": "DEPTH = 1\n"},
    )  # fmt: skip
    first, _ = import_file(tmp_path / "net.py")
    key = methods.source_hash(first)
    write(tmp_path, stranger="UNUSED = 2\n")
    assert import_file(tmp_path / "net.py")[0] is first
    write(tmp_path, **{edited: text})
    second, _ = import_file(tmp_path / "net.py")
    assert second is not first
    assert methods.source_hash(second) != key
    assert {"nets/block": 9, "helper": -3}.get(edited, 3) == second.VALUE


def test_two_modules_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, net="from own_layers import WHERE\n", own_layers=f"WHERE = '{folder}'\n")
    assert import_file(tmp_path / "a" / "net.py")[0].WHERE == "a"
    with pytest.raises(ValueError, match=r"imports 'own_layers', but a module of this name is already imported from .*a/own_layers\.py"):
        import_file(tmp_path / "b" / "net.py")
    assert import_file(tmp_path / "a" / "net.py")[0].WHERE == "a"


def test_the_folder_comes_last_in_the_path_and_an_exit_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, net="import json\nFILE = json.__file__\n", json="raise RuntimeError\n", leaving="import sys\nsys.exit(3)\n")
    assert Path(import_file(tmp_path / "net.py")[0].FILE).parent != tmp_path
    assert sys.path[-1] == str(tmp_path)
    with pytest.raises(ValueError, match=r"leaving\.py cannot be imported: SystemExit: 3"):
        import_file(tmp_path / "leaving.py")
