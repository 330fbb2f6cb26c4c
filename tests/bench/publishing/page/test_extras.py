"""What the page shows besides results: papers, verified rows, history, numbers of papers; and the page of all leaderboards."""

import datetime
import html
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.publishing import board_folder, history, publish, recording, reported, verified
from bench.publishing.board_folder import Board
from bench.publishing.page import overview, page, tables
from bench.publishing.row_comparison import Verdict
from bench.publishing.verify import Sample, Verification
from bench.ranking import leaderboard, tracks
from bench.spec.errors import UserError
from bench.spec.row import DECLARED
from bench.spec.suite import load_suite
from bench.storage import files
from bench.storage.contents import Contents
from bench.trial.job import Environment
from tests.bench.pages import made, row, rows_of, search

DAY = datetime.date(2026, 1, 31)
REPORTED = {
    "method": "snip", "dataset": "digits", "architecture": "mlp", "granularity": "weight", "match": "weights", "sparsity": "0.9",
    "epochs": "4", "finetune_epochs": "0", "train_limit": "", "metric": "accuracy", "value": "0.25", "paper": "Nobody 2026",
    "place": "table 1", "url": "https://example.org/1",
}  # fmt: skip


def plain(source: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", source)))


def test_a_method_links_to_its_papers_and_its_page() -> None:
    source = made([*rows_of(["magnitude@spam"], criterion="magnitude", training="spam"), row("my_own", criterion="my_own")])
    line = source.split('data-value="magnitude@spam"')[1].split("</th>")[0]
    assert 'href="../../criteria/magnitude.html" data-docs' in line
    assert re.findall(r'href="(https:[^"]+)"[^>]*>([^<]+)', line) == [
        ("https://arxiv.org/abs/1506.02626", "Han et al. 2015"), ("https://arxiv.org/abs/2402.15978", "Dhahri et al. 2024"),
    ]  # fmt: skip
    assert "href" not in source.split('data-value="my_own"')[1].split("</th>")[0]


def records() -> tuple[verified.Verified, ...]:
    found = [verified.of((r, r), Verdict([], ""), DAY) for r in rows_of(["magnitude"]) if r.criterion]
    return verified.joined((), filter(None, found[:4]))


def test_verified_rows_are_counted_and_listed() -> None:
    rows = rows_of(["magnitude", "snip"])
    source = made(rows, verified=records())
    assert '<td class="verified" data-value="4" title="4 of 18 rows">✓ 4</td>' in source
    table = source.split('id="verified-rows"')[1].split("</table>")[0]
    assert table.count("<tr>") == 4
    assert "bit-identical" in table
    assert "2026-01-31" in table
    assert "verified rows: 0" in made(rows)
    edited = [replace(one, commit="0123456789abcdef+") for one in records()]
    assert "0123456789ab+" in made(rows, verified=edited), "files were changed: it is not this commit"
    assert "No maintainer has recorded a second computation" in made(rows)


def test_the_price_in_dense_accuracy_and_the_flops_that_are_left() -> None:
    """Means over seeds, then over blocks: 0.9 and 0.8 on two blocks with three and one seed."""
    rows = [r for r in rows_of(["magnitude", "spam"]) if r.criterion]
    kept = {"digits": 30, "breast_cancer": 10}
    rows = [replace(r, flops=100, flops_kept=kept[r.dataset] + r.seed if r.sparsity == 0.95 else 99) for r in rows]
    rows = [replace(r, dense_accuracy=0.8 if r.dataset == "digits" else 0.9) if r.method == "spam" else r for r in rows]
    rows = [r for r in rows if r.dataset == "digits" or r.seed == 0]
    (board,) = tables.boards(leaderboard.leaderboard(rows), page.prepared(tracks.columns(rows, page.USED)))
    places = {column.title: k for k, column in enumerate(board.table.columns)}
    shown = {line.method: [line.cells[places[name]].text for name in ("Dense", "FLOPs")] for line in board.table.lines}
    assert shown == {"spam": ["85.0", "20.5"], "magnitude": ["90.0", "20.5"]}  # ((30 + 31 + 32) / 3 + 10) / 2


def test_the_history_is_shown() -> None:
    entries = (history.Entry("2026-02-01", ("Added: 1 row of `<snip>`",)), history.Entry("2026-01-31", ("First",)))
    source = made(rows_of(["magnitude"]), history=entries)
    assert "<dt>last change</dt><dd>2026-02-01</dd>" in source
    assert "<li>Added: 1 row of <code>&lt;snip&gt;</code></li>" in source
    assert 'href="CHANGELOG.md"' in source


@pytest.mark.parametrize("changed", [
    {}, {"sparsity": "0.95"}, {"epochs": "160"}, {"dataset": "mnist"}, {"method": "obd"}, {"train_limit": "1000"},
    {"granularity": "channel"},
])  # fmt: skip
def test_a_reported_number_is_compared_only_with_equal_settings(changed: dict[str, str]) -> None:
    rows = [
        *rows_of(["snip"]),
        row("snip", tuning="tuned", accuracy=0.0, hyperparameters=search()),
        row("snip", ablation="shuffle", accuracy=0.0),
    ]
    frame = page.prepared(tracks.columns(rows, page.USED))
    found = reported.compared(frame, lambda dataset, architecture: None, [REPORTED | changed])
    if changed == {"sparsity": "0.95"}:
        assert found[0].sparsity == 0.95
        return
    assert len(found) == (not changed)
    if found:
        mean = sum(float(r.accuracy or 0) for r in rows[:-2] if (r.dataset, r.sparsity, r.method) == ("digits", 0.9, "snip")) / 3
        assert (found[0].measured, found[0].value, found[0].seeds) == (pytest.approx(mean), 0.25, 3)
        source = made(rows, reported=found)
        assert '<a href="https://example.org/1" rel="noreferrer">Nobody 2026, table 1</a>' in source
        assert f"{100 * (mean - 0.25):.1f}" in source.split('id="reported"')[1].split("</table>")[0]


def test_without_such_numbers_the_page_says_so() -> None:
    assert "We know of no reported number with the settings of this leaderboard" in plain(made(rows_of(["magnitude"])))


def test_every_reported_number_has_its_source() -> None:
    header = (Path(reported.__file__).parent / "reported.csv").read_text().splitlines()[0]
    assert header == ",".join(reported.COLUMNS)
    for entry in reported.entries():
        assert entry["metric"] in DECLARED
        assert entry["paper"]
        assert entry["place"]
        assert urlsplit(entry["url"]).scheme == "https"
        assert 0 <= float(entry["sparsity"]) < 1


def board_in(folder: Path, name: str, rows: list[str]) -> None:
    suite = load_suite("digits").model_copy(update={"name": name, "description": f"<{name}>"})
    board = publish.with_records(Board(suite, tuple(rows_of(rows))), None)
    files.write_files(folder / name, {n: c for n, c in board_folder.files_of(board).items() if not n.startswith("plots/")})


def test_the_index_lists_every_leaderboard(tmp_path: Path) -> None:
    board_in(tmp_path, "first", ["magnitude", "snip"])
    board_in(tmp_path, "second", ["magnitude"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/leaderboard.csv").write_text("the output of a run")
    (tmp_path / "out/suite.toml").write_bytes((tmp_path / "first/suite.toml").read_bytes())
    source = overview.overview(tmp_path).decode()
    lines = re.findall(r"<tr>(.*?)</tr>", source.split("<tbody>")[1], re.DOTALL)
    assert len(lines) == 2
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for line, name, methods in zip(lines, ("first", "second"), (2, 1), strict=True):
        assert f'<a href="{name}/index.html">{name}</a>' in line
        assert [html.unescape(c) for c in re.findall(r"<td[^>]*>([^<]*)</td>", line)] == [
            f"<{name}>", "digits, breast_cancer", "mlp, lenet5, vit_micro_patch4", str(methods), "2", "3", str(18 * methods), "0", today,
        ]  # fmt: skip


def test_a_broken_leaderboard_is_named(tmp_path: Path) -> None:
    board_in(tmp_path, "first", ["magnitude"])
    (tmp_path / "first/leaderboard.csv").write_text("nothing\n1\n")
    with pytest.raises(UserError, match=r"first' is not a leaderboard that can be listed"):
        overview.overview(tmp_path)


def test_publishing_and_recording_change_the_index(tmp_path: Path) -> None:
    rows = rows_of(["magnitude", "random", "magnitude_layer"])
    board = Board(load_suite("digits"), tuple(rows))
    found = publish._publication(publish.with_records(board, None), tmp_path / "leaderboards/digits", [])
    assert found.index is not None
    found.write()
    assert (tmp_path / "leaderboards/index.html").read_bytes() == found.index == overview.overview(tmp_path / "leaderboards")
    there = board_folder.read(found.folder)
    assert publish._publication(publish.with_records(there, there), found.folder, []).index is None, "nothing has changed"
    sample = Sample(found.folder, there, there.rows[:1], (), (), Environment("cpu", None, tmp_path))
    one = replace(there.rows[0])
    recording.record(sample, Verification([(one, one)], [Verdict([], "")], [], 0, (), {}))
    assert (tmp_path / "leaderboards/index.html").read_bytes() != found.index
    assert board_folder.stale(found.folder, board_folder.read(found.folder)) == {}


def test_a_folder_and_its_list_are_written_both_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board_in(tmp_path, "first", ["magnitude"])
    board_in(tmp_path, "broken", ["magnitude"])
    (tmp_path / "index.html").write_bytes(overview.overview(tmp_path))
    (tmp_path / "broken/leaderboard.csv").write_text("nothing\n1\n")
    folder = tmp_path / "first"
    there = board_folder.read(folder)
    sample = Sample(folder, there, there.rows[:1], (), (), Environment("cpu", None, tmp_path))
    with pytest.raises(UserError, match=r"broken' is not a leaderboard"):
        recording.record(sample, Verification([(there.rows[0], there.rows[0])], [Verdict([], "")], [], 0, (), {}))
    assert not (folder / "verified.csv").exists()

    def full(path: Path) -> None:
        raise OSError(28, f"no space for {path.name}")

    monkeypatch.setattr(board_folder, "replacing", full)
    found = publish.Publication(folder, 0, 0, Contents([("suite.toml", b"new")]), None, b"new", ())
    with pytest.raises(UserError, match=r"cannot write .*: no space for index\.html"):
        found.write()
    assert (folder / "suite.toml").read_bytes() != b"new"


def test_a_page_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>My home page</title>")
    board = publish.with_records(Board(load_suite("digits"), tuple(rows_of(["magnitude"]))), None)
    with pytest.raises(UserError, match=r"index\.html' is not the list of leaderboards"):
        publish._publication(board, tmp_path / "digits", [])
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
