"""A published page in a real browser, for the tests of the page. Skipped where there is no browser."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed; `tox -e browser` has it")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium with chromedriver here (Debian: apt install chromium chromium-driver)"
    ),
]
PLOT = """<svg xmlns="http://www.w3.org/2000/svg" width="676pt" height="300pt" viewBox="0 0 676 300">
<style>path{fill:none;stroke:red}</style><path id="p" d="M0 0L676 300"/></svg>"""


def written(folder: Path, source: str, plots: Iterable[str] = ()) -> str:
    """Write a page and its plots; the address of the page."""
    for name in plots:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(PLOT)
    (folder / "index.html").write_text(source, encoding="utf-8")
    return (folder / "index.html").as_uri()


class Page:
    """The open page, and what a reader does with it."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, width: int = 1280, scheme: str = "light", after: str = "", **media: str) -> "Page":
        media = {"prefers_reduced_motion": "reduce"} | media  # a click would miss what is still scrolling
        features = [{"name": "prefers-color-scheme", "value": scheme}] + [
            {"name": n.replace("_", "-"), "value": v} for n, v in media.items()
        ]
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")  # an address that differs only after # would not load the page again
        self.driver.get(self.address + after)
        return self

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def column(self, place: int, table: str = "board-1") -> list[str]:
        script = """
            const lines = document.querySelectorAll(`#${arguments[0]} tbody tr:not([hidden])`);
            return [...lines].map((line) => line.cells[arguments[1]]).map((cell) => cell.dataset.value ?? cell.textContent.trim());
        """
        return list(self.js(script, table, place))

    def heading(self, title: str, table: str = "board-1") -> tuple[int, WebElement]:
        headings = self.all(f"#{table} tr.titles > th")
        place = next(k for k, th in enumerate(headings) if title in th.text.replace("\n", " "))
        return place, headings[place]

    def select(self, name: str, value: str) -> None:
        script = """
            const field = document.querySelector(`select[name=${arguments[0]}]`);
            field.value = arguments[1];
            field.dispatchEvent(new Event("input", { bubbles: true }));
        """
        self.js(script, name, value)

    def choose(self, name: str, value: str) -> None:
        self.js("arguments[0].click()", self.one(f'input[name="{name}"][value="{value}"]'))
