"""What a branch may change in a leaderboard, and what is found by comparing it with the leaderboard before. Rows are made up."""

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import methods
from bench.data import decoded
from bench.publishing import board_check, board_folder, contributions, publish, readme, review, verified
from bench.publishing.board_folder import Board
from bench.publishing.contributions import Contribution
from bench.publishing.page import overview
from bench.publishing.plots import curves
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage import files
from bench.trial.job import Environment
from tests.bench import repositories
from tests.bench.publishing.test_merge import DENSE_MINE, cells
from tests.bench.repositories import Once, git

NEW = tuple(cells("spam", 0.93))
SPAM = Contribution("spam", "default", "none", "Ada")
RECORD = verified.Verified(verified.key_of(NEW[0]), "0.93", "0.93", "equal", "2026-01-31", "0.1.0", "abc", "2.15.0", "cpu")
OBD = Contribution("obd", "default", "none", "Bob")


@pytest.fixture
def published(tiny: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> Board:
    """The committed leaderboard of the working folder: controls, and rows of obd that Bob has contributed."""
    monkeypatch.setattr(curves, "draw", lambda rows, board: {})
    return once.into(tiny, lambda: _committed(tiny))


def _committed(tiny: Path) -> Board:
    made = repositories.make(tiny)
    board = Board(made.suite, (*made.rows, *cells("obd")), contributions=(OBD,))
    write(board)
    repositories.commit(tiny)
    git(tiny, "checkout", "--quiet", "-b", "theirs")
    return board


def write(board: Board) -> None:
    folder = Path("leaderboards/tiny")
    files.write_files(folder, board_folder.changes(folder, board_folder.files_of(board)))


def added(board: Board) -> review.Addition:
    """What is found in a branch with this leaderboard."""
    write(board)
    repositories.commit(Path())
    found = review.branch(Path(), "main")
    assert (found.boards, found.methods) == (("tiny",), ())
    return review.addition(found, "tiny")


def only(board: Board, method: str, change: Callable[[Row], Row | None]) -> tuple[Row, ...]:
    """The rows of a board; the first one of a method is changed, or left out if `change` returns None."""
    first = next(row for row in board.rows if row.method == method)
    return tuple(made for row in board.rows if (made := change(row) if row is first else row) is not None)


def test_an_honest_addition_has_no_fault(published: Board) -> None:
    found = added(Board(published.suite, (*published.rows, *NEW), contributions=(OBD, SPAM)))
    assert found.faults == ()
    assert found.by == (SPAM,)
    assert found.methods == ("spam",)
    assert sorted(found.new, key=str) == sorted(NEW, key=str)


def adding(board: Board, *marks: Contribution, new: tuple[Row, ...] = NEW, rows: tuple[Row, ...] | None = None) -> Board:
    """The board with these marks and further rows; `rows` in place of its own."""
    return Board(board.suite, (*(board.rows if rows is None else rows), *new), contributions=marks)


def spoilt(**changes: object) -> tuple[Row, ...]:
    """The new rows, the first one with other values."""
    return (replace(NEW[0], **changes), *NEW[1:])  # type: ignore[arg-type]


FORGERIES: list[tuple[Callable[[Board], Board], str]] = [
    (lambda b: adding(b, OBD, SPAM, rows=only(b, "random", lambda row: replace(row, accuracy=0.91))), "published row of 'random' changed"),
    (lambda b: adding(b, OBD, SPAM, rows=only(b, "random", lambda _: None)), "1 published row of 'random' removed"),
    (lambda b: replace(adding(b, OBD, SPAM), suite=b.suite.model_copy(update={"batch_size": 32})), "suite.toml differs from that of the"),
    (lambda b: adding(b, OBD), "contributions.csv has no line for the new rows of 'spam'"),
    (lambda b: adding(b, replace(OBD, contributor="Ada"), SPAM), "the line of 'obd' is not that of the published rows"),
    (lambda b: adding(b, SPAM), "contributions.csv: the line of 'obd' is not that of the published rows"),
    (lambda b: adding(b, OBD, SPAM, replace(SPAM, method="magnitude")), "the line of 'magnitude' is not that of the published rows"),
    (lambda b: replace(adding(b, OBD, SPAM), verified=(RECORD,)), "verified.csv differs; maintainers record there"),
    (lambda b: replace(adding(b, OBD, SPAM), history="# All is well\n"), "CHANGELOG.md is not that of the published rows"),
    (lambda b: adding(b, OBD, SPAM, new=NEW[1:]), "'spam' has no row for breast_cancer/mlp at sparsity 0.5"),
    (lambda b: adding(b, OBD, SPAM, new=spoilt(kept_weights=501)), "spam · breast_cancer/mlp · sparsity 0.5 · seed 0 · fine-tuned 0: kept"),
    (lambda b: adding(b, OBD, SPAM, new=spoilt(dense_accuracy=0.5)), "dense_accuracy: not the value of the row of its dense network"),
    (lambda b: adding(b, OBD, SPAM, new=spoilt(dataset="folder:/etc")), "the suite does not contain folder:/etc/mlp"),
]  # fmt: skip


@pytest.mark.parametrize(("forge", "fault"), FORGERIES, ids=[fault for _, fault in FORGERIES])
def test_what_a_contribution_must_not_do_is_found(published: Board, forge: Callable[[Board], Board], fault: str) -> None:
    found = added(forge(published))
    assert any(fault in line for line in found.faults), found.faults


def test_faults_end_a_review_before_anything_is_computed(
    published: Board, bench: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.publishing.verify.draw", lambda *_, **__: pytest.fail("computed"))
    write(Board(published.suite, (*published.rows, *NEW), contributions=(OBD,)))
    Path("README.md").write_text("x")
    repositories.commit(Path())
    code, out, _ = bench("review", "main")
    assert code == 1
    assert out == (
        "leaderboards/tiny: 6 new rows (spam)\n"
        "FAULT    contributions.csv has no line for the new rows of 'spam'\n"
        "note: the branch also changes README.md; read these changes, nothing here checks them\n"
        "the branch cannot be merged as it is\n"
    )


def test_records_without_new_rows_are_said(
    published: Board, bench: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.cli.verify.run", lambda *_, **__: True)
    write(replace(published, verified=(RECORD,)))
    repositories.commit(Path())
    code, out, _ = bench("review", "main")
    assert code == 0
    assert "note: 1 of its records of verified rows are not those of before; only maintainers write them\n" in out


def test_the_changelog_gains_one_entry(published: Board) -> None:
    """As `publish` writes it: an earlier entry that is rewritten is found."""
    before = publish.with_records(published, None)
    write(before)
    base = repositories.commit(Path())
    after = publish.with_records(adding(published, OBD, SPAM), before)
    for text, faults in ((after.history, 0), (after.history.replace("First published", "Corrected"), 1), (before.history, 1)):
        write(replace(after, history=text))
        repositories.commit(Path())
        found = review.addition(review.branch(Path(), base), "tiny").faults
        assert [fault.partition(" ")[0] for fault in found] == ["CHANGELOG.md"] * faults


def test_the_list_of_leaderboards_is_no_other_change(published: Board) -> None:
    Path("leaderboards/index.html").write_bytes(overview.overview(Path("leaderboards")))
    repositories.commit(Path())
    assert review.branch(Path(), "main").others == ()
    Path("leaderboards/index.html").write_text("other")
    repositories.commit(Path())
    assert review.branch(Path(), "main").others == ("leaderboards/index.html",)


def test_the_tables_in_the_readme_are_no_other_change(published: Board, tmp_path: Path) -> None:
    """The README shows the leaderboard `digits`: what `publish` writes between its markers follows from leaderboard.csv."""
    git(tmp_path, "checkout", "--quiet", "main")
    git(tmp_path, "mv", "leaderboards/tiny", "leaderboards/digits")
    Path("README.md").write_text(f"Ä title\n{readme.BEGIN}\nold\n{readme.END}\n", encoding="utf-8")
    base = repositories.commit(tmp_path)
    text = readme.rewritten(Path("README.md").read_text(encoding="utf-8"), Path("leaderboards/digits/leaderboard.csv").read_bytes())
    assert text is not None
    Path("README.md").write_text(text, encoding="utf-8")
    repositories.commit(tmp_path)
    assert review.branch(tmp_path, base).others == ()
    Path("README.md").write_text(text.replace("title", "tables"), encoding="utf-8")
    repositories.commit(tmp_path)
    assert review.branch(tmp_path, base).others == ("README.md",)


def test_contributed_methods_need_not_be_tuned(published: Board, tmp_path: Path) -> None:
    suite = published.suite.model_copy(update={"trials": 2, "methods": ("all",)})
    rows = tuple(replace(row, version=importlib.metadata.version("razorbench")) for row in published.rows)

    def untuned(*marks: Contribution) -> set[str]:
        lines = board_check.faults(Board(suite, rows, contributions=marks), Environment("cpu", None, tmp_path)).lines
        (line,) = [line for line in lines if "has no tuned rows" in line]
        return set(line.removeprefix("the suite contains the methods ").partition(", but")[0].split(", "))

    assert untuned() - untuned(OBD) == {"obd"}
    assert untuned(OBD) > {"magnitude", "random"}


def test_derived_files_that_do_not_follow_are_found_without_computing(published: Board, bench: Callable[..., tuple[int, str, str]]) -> None:
    write(Board(published.suite, (*published.rows, *NEW), contributions=(OBD, SPAM)))
    table = Path("leaderboards/tiny/leaderboard.csv")
    table.write_text(table.read_text().replace("spam", "best"))
    repositories.commit(Path())
    code, out, _ = bench("review", "main", "--sample", "0")
    assert code == 1
    assert "contributed: spam (Ada)" in out
    assert "note: not checked: rows are not computed again (--sample 0)" in out
    assert "STALE    leaderboards/tiny/leaderboard.csv does not follow from results/" in out


def test_a_branch_without_additions(published: Board, bench: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = bench("review", "main")
    assert code == 0
    assert out.startswith("the branch adds no method and no rows since ")


def test_mistakes_of_a_review(published: Board, bench: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    assert bench("review", "nowhere")[2] == "error: 'nowhere' is not a commit or branch of this repository\n"
    assert bench("review", "--", "-x")[2] == "error: '-x' is not a commit or branch of this repository\n"
    (tmp_path / "methods/criteria/new.py").write_text("x = 1\n")
    assert bench("review", "main")[2] == "error: methods/criteria/new.py: not committed; a review is of commits\n"
    repositories.commit(tmp_path)
    code, _, error = bench("review", "main")
    assert code == 2
    assert "methods/criteria/new.py is not what runs here" in error
    git(tmp_path, "checkout", "--quiet", "--orphan", "other")
    repositories.commit(tmp_path)
    assert "have no common history" in bench("review", "main")[2]


def test_a_leaderboard_that_is_removed_or_new(published: Board) -> None:
    git(Path(), "mv", "leaderboards/tiny", "leaderboards/other")
    repositories.commit(Path())
    found = review.branch(Path(), "main")
    assert sorted(found.boards) == ["other", "tiny"]
    with pytest.raises(UserError, match="the branch removes the leaderboard 'tiny'"):
        review.addition(found, "tiny")
    new = review.addition(found, "other")
    assert (len(new.new), new.methods, new.faults) == (len(published.rows), None, ())


def test_a_hyperparameter_without_a_meaning_is_found(tiny: Path, clean_registry: None) -> None:
    options = "    a: int = methods.Int(1, 1, 2)\n    b: int = methods.Int(1, 1, 2, meaning='steps')\n"
    Path("mine.py").write_text(DENSE_MINE.replace("    def score", options + "    def score"))
    methods.load_plugin("mine.py")
    assert review.unexplained(methods.lookup("criteria", "dense_mine")).error == "a: give it meaning='...'"
    assert review.unexplained(methods.lookup("criteria", "obd")).error == ""


def test_data_that_are_not_at_hand_are_not_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"x")
    assert review.at_hand("digits", None)
    assert review.at_hand("mnist", tmp_path)
    assert not review.at_hand("mnist", None)
    assert not review.at_hand("cifar10", tmp_path)
    assert not review.at_hand("evil.py:load", tmp_path)
    monkeypatch.setattr(decoded, "key", lambda *_: pytest.fail("opened"))
    assert not review.at_hand("folder:/etc", tmp_path)


def test_marks_are_read_as_they_were_written(tmp_path: Path) -> None:
    lines = (Contribution("magnitude", "default", "none", '=HYPERLINK("x")'), Contribution("spam", "tuned", "shuffle", "Ada, B."))
    (tmp_path / contributions.FILE).write_text(contributions.text(reversed(lines)))
    assert contributions.read(tmp_path) == lines
    assert "\nmagnitude,default,none,\"'=HYPERLINK(" in (tmp_path / contributions.FILE).read_text()
    assert contributions.in_words(lines) == 'magnitude (=HYPERLINK("x")), spam tuned shuffle (Ada, B.)'
    assert contributions.in_words([Contribution("dense@mine", "default", "none", "Ada")]) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method,contributor\n", "the columns must be method,tuning,ablation,contributor"),
        ("x,default,none\n", "line 2: 3 cells, expected 4"),
        ("x,best,none,Ada\n", "line 2: tuning must be one of default, tuned, got 'best'"),
        ("x,default,some,Ada\n", "line 2: ablation must be one of none, shuffle, reinit, got 'some'"),
        ("x,default,none, \n", "line 2: the contributor's name is empty"),
        ("\x1b[2Jx,default,none,Ada\n", "line 2: the method '?[2Jx' has control characters"),
        ("x,default,none,\x1b[31mAda\n", "line 2: the contributor's name has characters that cannot be printed"),
        ("x,default,none,Ada\nx,default,none,Bob\n", "line 3: these rows have a line already"),
    ],
)
def test_marks_that_are_wrong_are_refused(tmp_path: Path, text: str, said: str) -> None:
    header = "" if "contributor\n" in text else "method,tuning,ablation,contributor\n"
    (tmp_path / contributions.FILE).write_text(header + text)
    with pytest.raises(UserError, match=r"contributions\.csv'") as stop:
        contributions.read(tmp_path)
    assert said in str(stop.value)


def test_the_page_and_the_data_package_show_the_mark(published: Board) -> None:
    made = board_folder.files_of(Board(published.suite, published.rows, contributions=(replace(OBD, contributor="<b>Bob"),)))
    shown = made["index.html"].decode()
    assert "Contributed rows: obd (&lt;b&gt;Bob)" in shown
    marked = re.findall(r'<th scope="row" class="method[^"]*" data-value="([^"]*)"[^>]*>(.*?)</th>', shown, re.DOTALL)
    assert {name for name, cell in marked if 'title="rows contributed by &lt;b&gt;Bob">by &lt;b&gt;Bob</span>' in cell} == {"obd"}
    assert len({name for name, _ in marked}) > 3
    assert '"path": "contributions.csv"' in made["datapackage.json"].decode()
    assert "schemas/contributions.json" in made
    plain = board_folder.files_of(Board(published.suite, published.rows))
    assert not [name for name in plain if "contributions" in name]
