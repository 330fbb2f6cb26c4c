"""Choices on the page in a real browser: filters, means over chosen blocks, the address, and files next to the page."""

import functools
import http.server
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

import pandas as pd
import pytest

from bench.publishing.page import blocks, overview, tables
from bench.publishing.page import page as pages
from bench.ranking import leaderboard, tracks
from bench.spec.row import Row
from bench.storage import results_csv
from tests.bench.pages import made, row, rows_of
from tests.bench.publishing.page.browser import MARKS, Page, written

pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By

pytestmark = MARKS
ROOT = Path(__file__).resolve().parents[4]
BOARDS = sorted(path.parent for path in (ROOT / "leaderboards").glob("*/index.html"))
METHODS = ["magnitude", "snip", "obd", "random"]


def rows() -> list[Row]:
    """Two data sets and two architectures; one method lacks a block."""
    more = [r for r in rows_of(METHODS, architecture="lenet5") if not (r.method == "random" and r.dataset == "digits")]
    dense = [
        row("dense", d, 0.0, s, criterion="", stage="", accuracy=0.8, architecture="lenet5")
        for d in ("digits", "breast_cancer")
        for s in range(3)
    ]
    return [*rows_of(METHODS), *(r for r in more if r.criterion), *dense, *(r for r in rows_of(METHODS, finetune_epochs=2) if r.criterion)]


@pytest.fixture
def board(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Page]:
    driver.get_log("browser")
    yield Page(driver, written(tmp_path, made(rows()))).open()
    assert driver.get_log("browser") == []


def by_block() -> pd.DataFrame:
    return blocks.measured(pages.prepared(tracks.columns(rows(), pages.USED)))


def shown(board: Page, table: str, place: int) -> set[str]:
    return set(board.column(place, table))


@pytest.mark.parametrize(("choices", "wanted"), [
    ({"dataset": "digits"}, {("digits", "mlp"), ("digits", "lenet5")}),
    ({"architecture": "mlp"}, {("digits", "mlp"), ("breast_cancer", "mlp")}),
    ({"block": "digits / lenet5"}, {("digits", "lenet5")}), ({"dataset": "digits", "architecture": "mlp"}, {("digits", "mlp")}),
    ({"dataset": "digits", "block": "breast_cancer / mlp"}, set()),
])  # fmt: skip
def test_filters_combine_and_leaderboards_show_means_over_the_blocks(
    board: Page, choices: dict[str, str], wanted: set[tuple[str, str]]
) -> None:
    for name, value in choices.items():
        board.select(name, value)
    assert set(zip(board.column(1, "block-1"), board.column(2, "block-1"), strict=True)) == wanted
    assert not board.one("#board-1").is_displayed()
    found = by_block()
    found = found[found["track"] == "one-shot after training"]
    means: dict[str, list[float]] = defaultdict(list)
    accuracies: dict[str, list[float]] = defaultdict(list)
    for line in found.itertuples():
        if (line.dataset, line.architecture) in wanted and line.sparsity == 0.95:
            means[line.method].append(line.relative_area)
            accuracies[line.method].append(line.accuracy)
    methods, areas = board.column(0, "narrow-1"), board.column(2, "narrow-1")
    assert methods == sorted(means, key=lambda m: -fmean(means[m])), "lines follow the area"
    for method, area, at, count in zip(methods, areas, board.column(4, "narrow-1"), board.column(6, "narrow-1"), strict=True):
        assert float(area) == pytest.approx(fmean(means[method]), abs=1e-9)
        assert float(at) == pytest.approx(fmean(accuracies[method]), abs=1e-9)
        assert int(count) == len(means[method])
    assert f"Means over {len(wanted)} of 4 blocks" in board.one(".narrowed .note").text
    for name in choices:
        board.select(name, "")
    assert board.one("#board-1").is_displayed()
    assert not board.all("#narrow-1")


def test_means_over_every_block_are_the_published_numbers(board: Page) -> None:
    """Chosen blocks with all of a track's blocks: the fine-tuned track has the architecture mlp only."""
    board.open(after="#track=fine-tuned+2+epochs&architecture=mlp")
    table = leaderboard.leaderboard(rows())
    published = table[table["track"] == "fine-tuned 2 epochs"].set_index("method")["relative_area"]
    (k,) = [n for n in (1, 2) if board.all(f"#narrow-{n}")]
    found = dict(zip(board.column(0, f"narrow-{k}"), map(float, board.column(2, f"narrow-{k}")), strict=True))
    assert found == pytest.approx(published.to_dict(), abs=1e-9)


def test_choices_are_in_the_address_and_come_back(board: Page) -> None:
    assert "#" not in board.js("return location.href")
    board.choose("track", "fine-tuned 2 epochs")
    board.select("dataset", "digits")
    board.one('input[name="method"]').send_keys("sn")
    kept = board.js("return location.hash")
    assert kept == "#track=fine-tuned+2+epochs&dataset=digits&method=sn"
    board.open(after=kept)
    assert board.one('input[name="track"]:checked').get_attribute("value") == "fine-tuned 2 epochs"
    assert board.one("select[name=dataset]").get_attribute("value") == "digits"
    visible = [t.get_attribute("id") for t in board.all("#results table") if t.is_displayed()]
    assert len(visible) == 1
    assert board.column(0, str(visible[0])) == ["snip"]
    assert board.one("#count").text == "1 of 4 methods"
    board.open(after="#track=nonsense&dataset=nothing&x=1")
    assert board.one('input[name="track"]:checked').get_attribute("value") == "one-shot after training"
    assert board.one("#board-1").is_displayed()
    board.open(after="#provenance")
    assert board.one("#board-1").is_displayed()


def test_lines_follow_the_area_after_a_switch(board: Page) -> None:
    board.choose("track", "fine-tuned 2 epochs")
    place, heading = board.heading("Method", "board-2")
    heading.find_element(By.TAG_NAME, "button").click()
    assert board.column(place, "board-2") == sorted(board.column(place, "board-2"))
    board.choose("track", "one-shot after training")
    board.choose("track", "fine-tuned 2 epochs")
    area, heading = board.heading("Area", "board-2")
    values = [float(v) for v in board.column(area, "board-2")]
    assert values == sorted(values, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"


def test_a_missing_picture_is_said(page: Page, driver: webdriver.Chrome, tmp_path: Path) -> None:
    assert not page.one("#missing").is_displayed()
    alone = Page(driver, written(tmp_path, made(rows(), plots={"plots/gone.svg": "accuracy: one-shot after training"}))).open()
    alone.js("document.querySelector('#plots').scrollIntoView()")
    for _ in range(20):
        if alone.one("#missing").is_displayed():
            break
        alone.driver.implicitly_wait(0.1)
    assert "copy the whole folder" in alone.one("#missing").text
    assert "(plots/gone.svg)" in str(alone.one("#plots img").get_attribute("alt"))
    driver.get_log("browser")  # the browser says so, too


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_plots_follow_the_theme(page: Page, scheme: str, dark: bool) -> None:
    def inverted() -> bool:
        return "invert" in str(page.js("return getComputedStyle(document.querySelector('.picture img')).filter"))

    page.open(scheme=scheme)
    assert inverted() == dark
    page.one("#theme").click()
    assert inverted() != dark


def test_from_a_file_the_documentation_is_that_of_a_checkout(board: Page) -> None:
    assert str(board.one("#board-1 a[data-docs]").get_attribute("href")).endswith(("/site/methods/snip.html", "/site/methods/obd.html",
        "/site/methods/random.html", "/site/methods/magnitude.html"))  # fmt: skip


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page whose blocks are too many for it, next to its blocks.csv."""
    monkeypatch.setattr(tables, "MOST_CELLS", 3)
    written(tmp_path, made(rows()))
    (tmp_path / "blocks.csv").write_text(results_csv.table_text(by_block()))
    return tmp_path


@pytest.fixture
def served(many: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(many)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


def test_too_many_blocks_are_loaded_when_asked_for(driver: webdriver.Chrome, served: str) -> None:
    board = Page(driver, served).open()
    assert not board.all("#block-1")
    board.one("#blocks .load").click()
    driver.implicitly_wait(5)
    board.one("#block-1")
    driver.implicitly_wait(0)
    found = by_block()
    lines = found[(found["track"] == "one-shot after training") & (found["sparsity"] == 0.9)]
    wanted = {(m, d, a): v for m, d, a, v in zip(lines["method"], lines["dataset"], lines["architecture"], lines["accuracy"], strict=True)}
    place, _ = board.heading("90 %", "block-1")
    keys = zip(*(board.column(k, "block-1") for k in range(3)), strict=True)
    assert dict(zip(keys, map(float, board.column(place, "block-1")), strict=True)) == pytest.approx(wanted)
    board.select("dataset", "digits")
    assert shown(board, "block-1", 1) == {"digits"}
    assert board.all("#narrow-1")


def test_a_file_links_to_what_it_may_not_read(driver: webdriver.Chrome, many: Path) -> None:
    board = Page(driver, (many / "index.html").as_uri()).open()
    assert not board.all(".load")
    assert board.one("[data-load] a").get_attribute("href") == (many / "blocks.csv").as_uri()


WIDER = (
    "return [...document.querySelectorAll('.scroll')].filter(b => b.offsetParent && b.scrollWidth > b.clientWidth).map(b => b.ariaLabel)"
)
CUT = """
const bad = [];
for (const node of document.querySelectorAll("body *")) {
  const box = node.getBoundingClientRect();
  if (!box.width || node.closest(".unseen, .skip")) continue;
  if (box.right > innerWidth + 0.5 || box.left < -0.5) bad.push(node.tagName + "." + node.className + " " + node.textContent.slice(0, 40));
}
return bad;
"""


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_published_pages_fit_on_a_screen_and_on_a_phone(driver: webdriver.Chrome, folder: Path) -> None:
    board = Page(driver, (folder / "index.html").as_uri())
    for width, script in ((1440, WIDER), (390, WIDER), (390, CUT)):
        board.open(width)
        values = [[str(one.get_attribute("value")) for one in board.all(f"input[name={name}]")] for name in ("track", "tuning")]
        for track, tuning in itertools.product(*(found or [""] for found in values)):
            board.open(width, after=f"#track={quote(track)}&tuning={tuning}")
            board.js("document.querySelectorAll('details:not(.inline)').forEach(d => { d.open = true })")
            assert board.js(script) == []
    assert (folder / "index.html").stat().st_size < (1_000_000 if folder.name == "digits" else 2_000_000)
    driver.get_log("browser")


def test_a_card_names_its_numbers(page: Page) -> None:
    page.open(390)
    labels = page.js(
        "return [...document.querySelectorAll('#board-1 tbody tr:first-child td')].map(c => getComputedStyle(c, '::before').content)"
    )
    assert '"At 95 %"' in labels
    assert '"At 95 % NLL"' in labels
    assert not {"none", '""'} & set(labels)


def test_all_leaderboards_can_be_sorted(driver: webdriver.Chrome, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(overview.overview(ROOT / "leaderboards"))
    every = Page(driver, (tmp_path / "index.html").as_uri()).open()
    place, heading = every.heading("Rows", "every")
    heading.find_element(By.TAG_NAME, "button").click()
    counts = [int(v.replace(",", "")) for v in every.column(place, "every")]
    assert len(counts) == len(BOARDS)
    assert counts == sorted(counts, reverse=True)
    for width in (1440, 390):
        every.open(width)
        assert every.js(WIDER) == every.js(CUT) == []


def test_headings_that_sort_on_a_phone_name_their_group(page: Page) -> None:
    shown = "return [...document.querySelectorAll('#board-1 .titles button')].map(b => getComputedStyle(b, '::before').content)"
    hidden = "return [...document.querySelectorAll('#board-1 .titles .head')].every(h => !h.offsetParent)"
    page.open(390)
    assert {'"At 95 %"', '"At 95 % NLL"'} <= set(page.js(shown))
    assert page.js(hidden)
    page.open(1280)
    assert set(page.js(shown)) == {"none"}
    assert not page.js(hidden)
