"""A leaderboard cannot make the reader's machine execute code: files and entry points are refused unless the reader gives the file."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.data import sources
from bench.execution.local import Local
from bench.publishing import board_folder, row_rules, trust
from bench.publishing.board_folder import Board
from bench.publishing.plots import curves
from bench.spec import own_file
from bench.spec.errors import UserError
from bench.spec.protocol import Block
from bench.spec.suite import Suite, load_suite
from bench.storage import files, results_csv
from tests.bench.own_files import run_here, write
from tests.bench.repositories import Once

Bench = Callable[..., tuple[int, str, str]]
NAMES = ("my_data.py:load", "my_net.py:build")


@pytest.fixture
def board(tiny: Path, once: Once, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A leaderboard of an own network on own data, as its author would write it; each file notes that it is executed."""
    monkeypatch.setattr(Local, "run", run_here)
    monkeypatch.setattr(curves, "draw", lambda rows, board: {})
    return once.into(tiny, lambda: _written(tiny, bench))


def _written(tiny: Path, bench: Bench) -> Board:
    write(tiny)
    options = ("--suite", "tiny.toml", "--seeds", "0", "--methods", "magnitude", "--workers", "1", "--output", "out")
    code, _, error = bench("run", *options, "--datasets", NAMES[0], "--architectures", NAMES[1])
    assert code == 0, error
    blocks = (Block(dataset=NAMES[0], architectures=(NAMES[1],)),)
    suite = load_suite("tiny.toml").model_copy(update={"blocks": blocks, "seeds": (0,)})
    made = Board(suite, tuple(results_csv.read_rows(Path("out/results.csv"))))
    files.write_files(Path("leaderboards/tiny"), board_folder.files_of(made))
    for name in ("my_net.py", "my_data.py"):  # a comment leaves the code's hash as it is, but here a statement is needed
        (tiny / name).write_text((tiny / name).read_text() + f"\nopen('executed-{name}', 'w').close()\n")
    return made


def test_verify_executes_only_files_that_are_given(tiny: Path, board: Board, bench: Bench) -> None:
    given: tuple[str, ...] = ()
    for kind, name in zip(("architecture", "dataset"), reversed(NAMES), strict=True):
        code, _, error = bench("verify", "leaderboards/tiny", "--workers", "1", *given)
        file = (tiny / name.partition(":")[0]).resolve()
        assert code == 2
        assert error == (
            f"error: this leaderboard names the {kind} '{name}', whose code would be executed: if you trust it, give its file by --plugin"
            f" {file}\n"
        )
        assert not (tiny / "executed-my_data.py").exists()
        given += ("--plugin", str(file))
    code, out, error = bench("verify", "leaderboards/tiny", "--workers", "1", "--sample", "2", "--methods", "dense,magnitude", *given)
    assert code == 0, (out, error)
    assert "all 2 rows are as published" in out
    assert {file.name for file in tiny.glob("executed-*")} == {"executed-my_net.py", "executed-my_data.py"}


def test_a_merge_is_refused_and_executes_nothing(tiny: Path, board: Board, bench: Bench) -> None:
    code, _, error = bench("publish", "--suite", "tiny", "--merge", "out/results.csv", "--contributor", "Ada")
    assert code == 2
    assert "names the architecture 'my_net.py:build', whose code would be executed" in error
    assert not list(tiny.glob("executed-*"))
    given = ("--contributor", "Ada", "--plugin", "my_net.py", "--plugin", "my_data.py")
    _, _, error = bench("publish", "--suite", "tiny", "--merge", "out/results.csv", *given)
    assert "whose code" not in error
    assert "the controls random" in error  # the next check of a merge


def test_names_of_rows_and_blocks_are_refused_and_timm_s_and_ours_are_not(
    tiny: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_suite("tiny.toml")
    rows = tuple(replace(row, dataset="digits", architecture="resnet18") for row in board.rows)
    trust.refuse_foreign_code(Board(plain, rows), ())
    for kind in ("dataset", "architecture"):
        with pytest.raises(UserError, match=f"names the {kind} 'x/evil.py:run'"):
            trust.refuse_foreign_code(Board(plain, (*rows, replace(rows[0], **{kind: "x/evil.py:run"}))), ("my_net.py",))
    assert board.suite.blocks != plain.blocks
    with pytest.raises(UserError, match=r"'my_data\.py:load'"):
        trust.refuse_foreign_code(Board(board.suite, rows), ())


def test_rows_that_start_from_another_checkpoint_are_refused(tiny: Path, board: Board) -> None:
    """They are not comparable with the rows of a leaderboard whose networks start from random weights, or from another file."""
    own, other = (f"sha256:{digit * 64}" for digit in "ab")
    suite = board.suite.model_copy(update={"weights": "w.safetensors"})
    row = board.rows[0]

    def faults(suite: Suite, published: str, given: str) -> list[str]:
        there = Board(suite, tuple(replace(r, initial_weights=published) for r in board.rows))
        return [fault for fault in row_rules._of_suite(replace(row, initial_weights=given), there) if "initial_weights" in fault]

    assert faults(board.suite, "random", "random") == faults(suite, own, own) == []
    assert faults(board.suite, "random", own) == [f"initial_weights '{own}', this leaderboard has 'random'"]
    assert faults(suite, own, other) == [f"initial_weights '{other}', this leaderboard has '{own}'"]
    assert faults(suite, own, "random") == [f"initial_weights 'random', this leaderboard has '{own}'"]


def test_a_checkpoint_that_is_not_the_published_one_is_one_line(tiny: Path, board: Board, bench: Bench) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, "w.safetensors")
    published = tuple(replace(row, initial_weights=f"sha256:{'a' * 64}") for row in board.rows)
    suite = board.suite.model_copy(update={"weights": "w.safetensors"})
    files.write_files(Path("leaderboards/tiny"), board_folder.evidence(Board(suite, published)))
    given = ("--plugin", "my_net.py", "--plugin", "my_data.py")
    code, _, error = bench("verify", "leaderboards/tiny", "--workers", "1", *given)
    assert code == 2
    assert re.search(r"weights 'w\.safetensors' are sha256:[0-9a-f]{64}, but the rows of this run start from sha256:a{64}$", error.strip())


def test_an_entry_point_is_refused_by_name(tiny: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("their_net", "sklearn.cluster:KMeans", own_file.GROUPS["architecture"])
    monkeypatch.setattr(own_file, "_entries", lambda kind: {"their_net": point} if kind == "architecture" else {})
    theirs = Board(load_suite("tiny.toml"), (replace(board.rows[0], dataset="digits", architecture="their_net"),))
    with pytest.raises(UserError, match=r"names the architecture 'their_net', .* --plugin .*sklearn/cluster/__init__\.py$"):
        trust.refuse_foreign_code(theirs, ())
    (file,) = [own_file.file_of("architecture", "their_net")]
    trust.refuse_foreign_code(theirs, (str(file),))


FOREIGN = ("folder:/etc", "folder:pets", "folder:../pets", "tar:~/pets", "hf:pets", "hf:/etc", "timm:hfds/pets", "TIMM:HFDS/pets")


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_this_machine_are_refused_before_they_are_opened(
    tiny: Path, board: Board, bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tiny / "pets").mkdir()
    blocks = (Block(dataset=name, architectures=("mlp",)),)
    theirs = Board(
        board.suite.model_copy(update={"blocks": blocks}), tuple(replace(r, dataset=name, architecture="mlp") for r in board.rows)
    )
    files.write_files(Path("leaderboards/tiny"), board_folder.evidence(theirs))
    monkeypatch.setattr(sources, "read", lambda *_: pytest.fail("opened"))
    for given in ((), ("--data-root", "leaderboards")):
        code, _, error = bench("verify", "leaderboards/tiny", "--workers", "1", *given)
        assert code == 2
        assert error == (
            f"error: this leaderboard names the dataset '{name}', files of this machine: if you trust it, give the folder that contains"
            " them by --data-root\n"
        )


def test_files_in_the_folder_that_is_given_are_allowed(tiny: Path, board: Board) -> None:
    (tiny / "root" / "pets").mkdir(parents=True)
    plain = load_suite("tiny.toml")
    for name in ("folder:pets", f"folder:{tiny}/root/pets", "hf:pets", "digits", "cifar10", "timm:torch/cifar100", "hf:owner/name"):
        suite = plain.model_copy(update={"blocks": (Block(dataset=name, architectures=("mlp",)),)})
        trust.refuse_foreign_data(Board(suite, ()), tiny / "root")
    (tiny / "root" / "out").symlink_to("/etc")
    suite = plain.model_copy(update={"blocks": (Block(dataset="folder:out", architectures=("mlp",)),)})
    with pytest.raises(UserError, match="files of this machine"):
        trust.refuse_foreign_data(Board(suite, ()), tiny / "root")


def test_rows_of_a_data_set_that_the_suite_does_not_contain_are_refused(tiny: Path, board: Board) -> None:
    rows = (replace(board.rows[0], dataset="cifar10"),)
    with pytest.raises(UserError, match="has rows of the dataset 'cifar10', which its suite does not contain: "):
        trust.refuse_foreign_data(Board(load_suite("tiny.toml"), rows), None)
