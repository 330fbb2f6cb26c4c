"""The page in a real browser: sorting, filtering, themes, small screens, keyboard. Skipped where there is none."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bench.pages import HOSTILE, made, row, rows_of, search

pytest.importorskip("selenium", reason="selenium is not installed; `tox -e browser` has it")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium with chromedriver here (Debian: apt install chromium chromium-driver)"
    ),
]
PLOT = """<svg xmlns="http://www.w3.org/2000/svg" width="676pt" height="300pt" viewBox="0 0 676 300">
<style>path{fill:none;stroke:red}</style><path id="p" d="M0 0L676 300"/></svg>"""

# Text whose colour is too close to what lies behind it: (ratio, text). WCAG 2.2, 1.4.3: 4.5, or 3 where it is large.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, k) => {
  const v = c[k] / 255;
  return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
}, 0);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = rgba(getComputedStyle(node).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const bad = new Map();
for (const node of document.querySelectorAll("body *")) {
  const text = [...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
  if (!text || !node.getClientRects().length) continue;
  const style = getComputedStyle(node), size = parseFloat(style.fontSize);
  const [x, y] = [light(rgba(style.color)), light(behind(node))].sort((a, b) => b - a);
  const ratio = (x + 0.05) / (y + 0.05);
  if (ratio < (size >= 24 ? 3 : 4.5)) bad.set(`${node.tagName}.${node.className}`, [ratio, text]);
}
return [...bad.values()];
"""


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", *["--no-sandbox"] * (os.geteuid() == 0)):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty methods, two blocks, two tracks, tuned and not, a failure, a refusal, names that try it on."""
    methods = ["magnitude", HOSTILE, "a_very_long_name@spam(structure=kronecker,prior=parameter,weight_decay=1.85e-05)"]
    rows = rows_of(methods + [f"method_{k}" for k in range(37)])
    rows += rows_of(["magnitude", "method_1"], finetune_epochs=2)
    rows += rows_of(["magnitude", "method_1"], tuning="tuned", hyperparameters=search())[6:]
    rows += [row("refuses", status="unsupported", accuracy=None, error="declines " + "norms " * 20)]
    rows += [row("breaks", status="failed", accuracy=None, nll=None, ece=None, error=HOSTILE)]
    plots = {"accuracy: one-shot after training": PLOT, "accuracy: fine-tuned 2 epochs": PLOT, "ranks": PLOT}
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(made(rows, plots), encoding="utf-8")
    return file.as_uri()


class Page:
    """The open page, and what a reader does with it."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, width: int = 1280, scheme: str = "light", **media: str) -> "Page":
        features = [{"name": "prefers-color-scheme", "value": scheme}] + [
            {"name": n.replace("_", "-"), "value": v} for n, v in media.items()
        ]
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(self.address)
        return self

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def column(self, place: int, table: str = "board-1") -> list[str]:
        script = (
            "return [...document.querySelectorAll(`#${arguments[0]} tbody tr:not([hidden])`)].map(r => r.cells[arguments[1]].dataset.value)"
        )
        return list(self.js(script, table, place))

    def heading(self, title: str, table: str = "board-1") -> tuple[int, WebElement]:
        headings = self.all(f"#{table} tr.titles > th")
        place = next(k for k, th in enumerate(headings) if title in th.text.replace("\n", " "))
        return place, headings[place]

    def choose(self, name: str, value: str) -> None:
        self.js("arguments[0].click()", self.one(f'input[name="{name}"][value="{value}"]'))


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Iterator[Page]:
    driver.get_log("browser")
    driver.get_log("performance")
    shown = Page(driver, address).open()
    yield shown
    shown.js("localStorage.clear()")
    assert driver.get_log("browser") == []


def numbers(values: list[str]) -> list[float]:
    return [float(v) for v in values if v]


def test_a_click_sorts_and_another_turns_it_round(page: Page) -> None:
    for title, first in {"95 %": "descending", "NLL": "ascending", "Area / dense": "descending"}.items():
        place, heading = page.heading(title)
        for direction in (first, {"ascending": "descending", "descending": "ascending"}[first]):
            heading.find_element(By.TAG_NAME, "button").click()
            values = page.column(place)
            assert numbers(values) == sorted(numbers(values), reverse=direction == "descending")
            assert heading.get_attribute("aria-sort") == direction
            assert len(page.all("#board-1 th[aria-sort]")) == 1
            assert all(values[: len(numbers(values))]), "missing values come last"


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_a_key_sorts(page: Page, key: str) -> None:
    place, heading = page.heading("Method")
    heading.find_element(By.TAG_NAME, "button").send_keys(key)
    names = page.column(place)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [n for n in names if n.startswith("method_")] == [f"method_{k}" for k in range(37)]


def test_a_column_with_missing_values_keeps_them_last(page: Page) -> None:
    place, heading = page.heading("Rank")
    for _ in range(2):
        heading.find_element(By.TAG_NAME, "button").click()
        assert "" in page.column(place)
        assert page.column(place)[-1] == ""


def test_the_filter_by_name_holds_for_every_table(page: Page) -> None:
    page.one('input[name="method"]').send_keys("METHOD_1")
    wanted = {"method_1", *(f"method_{k}" for k in range(10, 20))}
    assert set(page.column(1)) == set(page.column(0, "block-1")) == wanted
    assert page.one("#count").text == "11 of 42 methods"
    assert set(page.column(0, "gains")) == {"method_1"}
    page.one('input[name="method"]').send_keys(Keys.ENTER)
    assert len(page.column(1)) == 11, "sending the form loads nothing"


def test_blocks_are_filtered_by_data_set(page: Page) -> None:
    assert set(page.column(1, "block-1")) == {"digits", "breast_cancer"}
    page.one('[data-filters="block-1"] select[name="dataset"]').send_keys("digits")
    assert set(page.column(1, "block-1")) == {"digits"}


def test_one_track_is_shown_at_a_time(page: Page) -> None:
    def shown() -> list[tuple[str | None, str | None]]:
        boards = [b for b in page.all("#results .board") if b.is_displayed()]
        return [(b.get_attribute("data-track"), b.get_attribute("data-tuning")) for b in boards]

    assert shown() == [("one-shot after training", "default")]
    page.one('input[name="track"]').send_keys(Keys.ARROW_RIGHT)
    assert shown() == [("fine-tuned 2 epochs", "default")]
    page.choose("tuning", "tuned")
    assert shown() == []
    assert page.one("#results [data-empty]").is_displayed()
    page.choose("track", "one-shot after training")
    assert shown() == [("one-shot after training", "tuned")]


def test_plots_are_there_and_have_a_size(page: Page) -> None:
    shown = [image for image in page.all(".plot img") if image.is_displayed()]
    assert len(shown) == 2
    for image in shown:
        assert page.js("return arguments[0].decode().then(() => arguments[0].naturalWidth)", image) > 0
        assert image.size["width"] > 600
        assert image.size["height"] > 200


def test_nothing_is_requested(page: Page) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.address]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(page: Page, width: int) -> None:
    page.open(width)
    page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.js("return document.documentElement.scrollWidth") <= width
    page.choose("track", "fine-tuned 2 epochs")
    assert page.js("return document.documentElement.scrollWidth") <= width


def test_the_theme_follows_the_system_and_the_button(page: Page) -> None:
    def ground() -> int:
        return int(page.js("return Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"))

    button = "#theme"
    assert ground() > 200
    assert page.one(button).get_attribute("aria-pressed") == "false"
    page.one(button).click()
    assert ground() < 60
    assert page.one(button).get_attribute("aria-pressed") == "true"
    page.open()
    assert ground() < 60, "the choice is remembered"
    page.js("localStorage.clear()")
    page.open(scheme="dark")
    assert ground() < 60
    page.one(button).click()
    assert ground() > 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, scheme: str) -> None:
    page.open(scheme=scheme)
    page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.js(CONTRAST) == []


def test_what_assistive_software_needs(page: Page) -> None:
    assert len(page.all("h1")) == 1
    levels = [int(h.tag_name[1]) for h in page.all("h1, h2, h3, h4")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for control in page.all("button, input, select, a, summary, [role=region], [role=img], nav, form"):
        assert control.accessible_name.strip() or not control.is_displayed(), control.get_attribute("outerHTML")
    assert all(image.get_attribute("alt") for image in page.all("img"))
    assert all(th.get_attribute("scope") for th in page.all("th"))
    identities = [node.get_attribute("id") for node in page.all("[id]")]
    assert len(identities) == len(set(identities))
    targets = [str(a.get_attribute("href")).partition("#")[2] for a in page.all('a[href^="#"]')]
    assert set(targets) <= set(identities)


def test_the_keyboard_gets_everywhere_and_shows_where_it_is(page: Page) -> None:
    reached = set()
    for step in range(60):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        here = page.driver.switch_to.active_element
        if step == 0:
            assert here.text == "Skip to the results"
            assert here.location["y"] >= 0
        style = "const s = getComputedStyle(arguments[0]); return s.outlineStyle"
        assert page.js(style, here) != "none" or here.get_attribute("type") == "radio", here.get_attribute("outerHTML")
        reached.add(here.get_attribute("name") or here.get_attribute("id") or here.tag_name)
        if here.tag_name == "summary":
            break
    assert reached >= {"theme", "track", "tuning", "method", "button", "summary", "a"}


def test_headings_stay_while_a_table_scrolls(page: Page) -> None:
    box = page.all("#results .scroll")[0]
    page.js("arguments[0].scrollTo(300, 400)", box)
    top = page.js("return arguments[0].querySelector('thead').getBoundingClientRect().top - arguments[0].getBoundingClientRect().top", box)
    left = page.js(
        "return arguments[0].querySelector('tbody th').getBoundingClientRect().left - arguments[0].getBoundingClientRect().left", box
    )
    assert 0 <= top <= 2
    assert 0 <= left <= 2


@pytest.mark.parametrize(("wish", "expected"), [("reduce", "auto"), ("no-preference", "smooth")])
def test_who_wants_less_motion_gets_none(page: Page, wish: str, expected: str) -> None:
    page.open(prefers_reduced_motion=wish)
    assert page.js("return getComputedStyle(document.documentElement).scrollBehavior") == expected


def test_without_scripts_every_table_is_there(page: Page) -> None:
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.open()
        tables = page.all("table")
        assert len(tables) == 8
        assert all(table.is_displayed() for table in tables)
        assert not page.one("#tools").is_displayed()
        assert not [b for b in page.all("button, select, input") if b.is_displayed()]
    finally:
        page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_hostile_names_stay_names(page: Page) -> None:
    assert HOSTILE in page.column(1)
    assert page.js("return document.scripts.length") == 1
