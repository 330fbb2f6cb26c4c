"""The page in a real browser: sorting, themes, small screens, keyboard. Skipped where there is none."""

import itertools
import json

import pytest

from tests.bench.pages import HOSTILE
from tests.bench.publishing.page.browser import MARKS, Page

pytest.importorskip("selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = MARKS

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
    load = "image => { image.loading = 'eager'; return image.decode(); }"
    page.js(f"return Promise.all([...document.querySelectorAll('.plot img')].map({load}))")
    shown = [image for image in page.all(".plot img") if image.is_displayed()]
    assert len(shown) == 2
    for image in shown:
        assert page.js("return arguments[0].decode().then(() => arguments[0].naturalWidth)", image) > 0
        assert image.size["width"] > 600
        assert image.size["height"] > 200


def test_nothing_is_requested(page: Page) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    pictures = {page.address.replace("index.html", f"plots/{k}.svg") for k in range(3)}
    assert {url for url in asked if not url.startswith("data:")} - pictures == {page.address}


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
    for step in range(90):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        here = page.driver.switch_to.active_element
        if step == 0:
            assert here.text == "Skip to the results"
            assert here.location["y"] >= 0
        style = "const s = getComputedStyle(arguments[0]); return s.outlineStyle"
        assert page.js(style, here) != "none" or here.get_attribute("type") == "radio", here.get_attribute("outerHTML")
        reached.add(here.get_attribute("name") or here.get_attribute("id") or here.tag_name)
        if here.tag_name == "button" and reached >= {"theme", "track"}:
            break
    assert reached >= {"theme", "track", "tuning", "dataset", "block", "method", "button", "summary", "a"}


def test_headings_stay_while_a_table_scrolls(page: Page) -> None:
    page.open(900)
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
