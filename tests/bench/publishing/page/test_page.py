"""The static page: all that the CSVs say is on it, nothing in them can do anything there."""

import html
import html.parser
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest

from bench.publishing.history import Entry
from bench.publishing.page import page, tables
from bench.publishing.page.cells import Line
from bench.ranking import leaderboard, tuning_gain
from bench.spec.row import Row
from tests.bench.pages import HOSTILE, dense, made, row, rows_of, search


class Elements(html.parser.HTMLParser):
    """Every element with its attributes, all text that is shown, and the value of each table cell: its `data-value`, or else its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.values: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "td":
            self.values.append(dict(attrs).get("data-value") or "")
            self.empty = "data-value" not in dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "td" and self.empty:
            self.values[-1] += data.strip()
        if self.inside not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_every_number_of_the_leaderboard_is_on_the_page() -> None:
    rows = rows_of(["magnitude", "snip", "obd"])
    board = leaderboard.leaderboard(rows)
    values = set(Elements(made(rows)).values)
    for name in ("relative_area", "accuracy_90", "accuracy_95", "accuracy_99", "sparsity_within_one_point"):
        assert {f"{v:.10g}" for v in board[name]} <= values, name
    for name in ("nll_95", "ece_95", "scoring_epochs"):
        assert {f"{v:.10g}" for v in board[name]} <= values, name
    same = html.unescape(made(rows)).split("The same for all methods of this table: ")[1].split(".</p>")[0].split("; ")
    assert same == [
        "failed rows: 0",
        "collapsed rows: 0",
        "unsupported rows: 0",
        "rows: 18",
        "verified rows: 0",
        "blocks: 2",
        "seeds: 3",
        "epochs: 4",
        "training FLOPs: –",
    ]
    hints = " ".join(d.get("title") or "" for d in Elements(made(rows)).of("td"))
    for name in ("relative_area_low", "relative_area_high", "relative_area_std"):
        assert all(f"{v:.10g}" in hints for v in board[name]), name
    for line in board.itertuples():
        assert f"{line.wins:.0f} / {line.ties:.0f} / {line.losses:.0f}" in made(rows)


def steady(heights: dict[str, float], blocks: tuple[str, ...] = ("digits", "breast_cancer")) -> list[Row]:
    """Methods at these accuracies, within a point over three seeds."""
    cells = [(d, s) for d in blocks for s in (0, 1, 2)]
    pruned = [
        row(m, d, s, seed, accuracy=a + 0.005 * ((seed * 7 + len(m)) % 3))
        for m, a in heights.items()
        for d, seed in cells
        for s in (0.5, 0.9)
    ]
    return [dense(d, seed) for d, seed in cells] + pruned


def tables_of(rows: list[Row]) -> list[tables.Board]:
    return tables.boards(leaderboard.leaderboard(rows), page.prepared(pd.DataFrame([asdict(r) for r in rows])))


def blocks_of(board: tables.Board) -> list[Line]:
    assert board.blocks is not None
    return board.blocks.lines


def test_ranks_are_ranges_and_lines_come_by_area() -> None:
    rows = steady({"magnitude": 0.5, "snip": 0.8, "obd": 0.803})
    (board,) = tables_of(rows)
    shown = {line.method: (line.cells[0].text, line.cells[0].value) for line in board.table.lines}
    assert shown == {"obd": ("1–2", "1"), "snip": ("1–2", "1"), "magnitude": ("3", "3")}
    assert list(shown) == ["obd", "snip", "magnitude"]
    badges = [part.split("<")[0] for part in made(rows).split('class="badge')[1:]]
    assert badges == ['">1–2', '">1–2', '">3'], "nobody is the best alone"


def test_a_method_that_lacks_blocks_says_so() -> None:
    rows = steady({"magnitude": 0.5, "snip": 0.8}) + steady({"obd": 0.7}, ("digits",))[3:]
    assert {line.method: line.note for line in tables_of(rows)[0].table.lines} == {"magnitude": "", "snip": "", "obd": "1 of 2 blocks"}
    assert '<span class="chip blocks">1 of 2 blocks</span>' in made(rows)


def test_a_dense_network_that_did_not_train_is_a_warning() -> None:
    rows = [replace(r, status="collapsed") if r.method == "dense" and r.dataset == "digits" else r for r in steady({"magnitude": 0.5})]
    (text,) = re.findall(r'<p class="warning" role="note">(.*?)</p>', made(rows))
    assert text.startswith("digits/mlp: the dense network did not train (chance accuracy, or an error) on 3 of 3 seeds.")
    assert 'class="warning"' not in made(steady({"magnitude": 0.5}))


def test_a_point_of_a_block_is_the_mean_of_its_seeds_with_a_t_interval() -> None:
    accuracies = {0: 0.5, 1: 0.6, 2: 0.7}
    rows = [dense("digits", 0), *(row("snip", seed=s, accuracy=a) for s, a in accuracies.items())]
    (board,) = tables.boards(leaderboard.leaderboard(rows), page.prepared(pd.DataFrame([asdict(r) for r in rows])))
    point = blocks_of(board)[0].cells[-1]
    assert float(point.value) == pytest.approx(0.6)
    assert point.note == "±24.8"  # 4.303 * 0.1 / sqrt(3)


def test_an_interval_that_leaves_what_is_possible_is_cut_and_shown_by_its_ends() -> None:
    """As 43.6 ± 88.9 was: 4.303 * 0.36 / sqrt(3) to either side."""
    rows = [dense("digits", 0), *(row("snip", seed=s, accuracy=a) for s, a in enumerate((0.08, 0.436, 0.792)))]
    (board,) = tables_of(rows)
    assert blocks_of(board)[0].cells[-1].note == "(0.0–100.0)"
    assert board.table.lines[0].cells[2].note == "(0.000–1.111)", "relative to a dense accuracy of 0.9"


def test_a_failure_counts_as_zero_and_is_told() -> None:
    rows = [
        *rows_of(["magnitude"], seeds=(0, 1)),
        row("snip", "digits", 0.9, 0, status="failed", accuracy=None, error="out of <memory>"),
        row("snip", "digits", 0.9, 1, accuracy=0.5),
        row("synflow", "digits", 0.9, 0, status="unsupported", accuracy=None, error="attention"),
    ]
    source = made(rows)
    assert "out of &lt;memory&gt;" in source
    assert 'data-value="0.25" title="1 of 2 failed"' in source
    assert "attention" in source


def test_hostile_texts_stay_texts() -> None:
    rows = rows_of(["magnitude", HOSTILE], hyperparameters=f'{{"a": "{HOSTILE}"}}')
    rows += [row(HOSTILE, HOSTILE, tuning="tuned", hyperparameters=search(), error=HOSTILE, status="failed", accuracy=None, device=HOSTILE)]
    plain = Elements(made(rows_of(["magnitude", "snip"])))
    found = Elements(made(rows, HOSTILE, plots={f"plots/{HOSTILE}.svg": HOSTILE}, history=(Entry(HOSTILE, (HOSTILE,)),), files=(HOSTILE,)))
    assert len(found.of("script")) == len(plain.of("script")) == 1
    assert not [d for _, d in found.found if any(name.startswith("on") for name in d)]
    assert HOSTILE in found.text
    assert HOSTILE in {d.get("data-value") for d in found.of("th")}
    assert {str(d["alt"]).partition(";")[0] for d in found.of("img")} == {HOSTILE}
    assert all(
        str(d["href"]).startswith(("#", "../", "https://", "plots/", "data:", quote(HOSTILE)))
        for d in found.of("a")
        if not str(d["href"]).endswith((".csv", ".json", ".md"))
    )


def test_names_are_quoted_for_the_shell() -> None:
    source = html.unescape(made(rows_of(["magnitude", "spam(prior=unit,lr=1)", "$(reboot)"])))
    words = shlex.split(source.split("python -m bench run")[1].split("</code>")[0].replace("\\\n", ""))
    said = dict(zip(words[::2], words[1::2], strict=True))
    assert said["--methods"] == "magnitude,spam(prior=unit,lr=1),$(reboot)"
    assert said == {"--suite": "leaderboards/tiny/suite.toml", "--methods": said["--methods"], "--output": "out"}


def test_the_same_input_gives_the_same_bytes() -> None:
    rows = rows_of(["magnitude", "snip"])
    assert made(rows, plots={"plots/a.svg": "a plot"}) == made(rows, plots={"plots/a.svg": "a plot"})


def test_a_table_read_back_gives_the_same_page(tmp_path: Any) -> None:
    rows = rows_of(["magnitude", "snip"]) + rows_of(["magnitude", "snip"], tuning="tuned", hyperparameters=search())[6:]
    tables = leaderboard.leaderboard(rows), tuning_gain.tuned(rows), pd.DataFrame([asdict(r) for r in rows])
    read = []
    for k, table in enumerate(tables):
        table.to_csv(tmp_path / f"{k}.csv", index=False)
        read.append(pd.read_csv(tmp_path / f"{k}.csv"))
    assert page.page("tiny", "", *tables) == page.page("tiny", "", *read)


def test_nothing_is_fetched_and_nothing_else_runs() -> None:
    found = Elements(made(rows_of(["magnitude"]), plots={"plots/p.svg": "p"}))
    (policy,) = [d["content"] for d in found.of("meta") if d.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src 'sha256-" in policy
    loaded = [d.get(name) or "" for tag, d in found.found for name in ("src", "href", "srcset", "action", "poster", "data") if tag != "a"]
    assert all(a.startswith("data:") or a in {"", "plots/p.svg"} for a in loaded), "only pictures that stand next to the page"
    assert not [d for _, d in found.found if "style" in d]


def test_plots_stand_under_the_track_that_they_name() -> None:
    rows = rows_of(["magnitude"]) + rows_of(["magnitude"], finetune_epochs=2) + [row("magnitude", tuning="tuned", hyperparameters=search())]
    names = ["accuracy one-shot after training", "accuracy-fine-tuned-2-epochs.svg", "Ranks: one-shot after training, tuned", "all in one"]
    source = made(rows, plots={f"plots/{k}.svg": name for k, name in enumerate(names)})
    names = [name.partition(": ")[0] for name in names]  # the heading above says which track
    sections = re.split("<section", source.split('id="plots"')[1].split('id="blocks"')[0])
    assert [sum(name in html.unescape(s) for s in sections) for name in names] == [1, 1, 1, 1]
    where = {name: next(s for s in sections if name in html.unescape(s)) for name in names}
    assert 'data-tuning="tuned"' in where[names[2]]
    assert 'data-track="fine-tuned 2 epochs"' in where[names[1]]
    assert "data-track" not in where[names[3]]


def drop_plots_and_gains(rows: list[Row]) -> tuple[pd.DataFrame, ...]:
    return leaderboard.leaderboard(rows), pd.DataFrame(), pd.DataFrame([asdict(r) for r in rows])


def one_seed() -> tuple[pd.DataFrame, ...]:
    return drop_plots_and_gains(rows_of(["magnitude", "snip"], seeds=(0,)))


def without_columns() -> tuple[pd.DataFrame, ...]:
    board, gains, rows = drop_plots_and_gains(rows_of(["magnitude", "snip"]))
    return board.drop(columns=["nll_95", "relative_area_low", "wins"]), gains, rows.drop(columns=["commit", "error", "hyperparameters"])


def without_values() -> tuple[pd.DataFrame, ...]:
    return drop_plots_and_gains(rows_of(["magnitude", "snip"], accuracy=None, nll=None, ece=None, score_seconds=None, hyperparameters=""))


def nothing() -> tuple[pd.DataFrame, ...]:
    return pd.DataFrame(), pd.DataFrame(), pd.DataFrame()


@pytest.mark.parametrize("tables", [one_seed, without_columns, without_values, nothing])
def test_a_page_of_what_there_is(tables: Callable[[], tuple[pd.DataFrame, ...]]) -> None:
    board, gains, rows = tables()
    text = Elements(page.page("tiny", "", board, gains, rows)).text
    assert "nan" not in text.lower().split()
    assert "None" not in text
    assert ("With one seed nothing can be tested" in text) == (tables is one_seed)


def test_what_tuning_cost_and_gained_is_a_table() -> None:
    rows = rows_of(["magnitude"]) + rows_of(["magnitude"], tuning="tuned", hyperparameters=search())[6:]
    gains = tuning_gain.tuned(rows)
    found = Elements(made(rows))
    values = set(found.values)
    for name in ("area_default", "area_tuned", "gain"):
        assert {f"{v:.10g}" for v in gains[name]} <= values
    assert {"2", "8", "0.25", "0.75"} <= values
    assert "What tuning cost and what it gained" in found.text


def test_the_axis_leaves_out_who_is_far_below() -> None:
    near = {f"m{k}": (0.9, 0.9 + k / 1000, 0.91 + k / 1000) for k in range(9)} | {"magnitude": (0.1, 0.11, 0.12)}
    lines = [{"track": "t", "tuning": "default", "method": m, "relative_area": v[1], "relative_area_low": v[0], "relative_area_high": v[2]}
             for m, v in near.items()]  # fmt: skip
    (board,) = tables.boards(pd.DataFrame(lines), page.prepared(pd.DataFrame()))
    bars = [line.cells[2].bar for line in board.table.lines]
    assert [bar is not None and bar.off for bar in bars] == [False] * 9 + [True]
    assert board.table.columns[2].axis == ("0.90", "0.92")


def test_sorting_needs_one_cell_a_column() -> None:
    rows = rows_of(["magnitude", "snip"]) + rows_of(["magnitude"], tuning="tuned", hyperparameters=search())[6:]
    for board in tables.boards(leaderboard.leaderboard(rows), page.prepared(pd.DataFrame([asdict(r) for r in rows]))):
        for table in filter(None, (board.table, board.blocks)):
            assert {len(line.cells) for line in table.lines} == {len(table.columns)}
            assert sum(span for _, span in table.groups) == len(table.columns)
