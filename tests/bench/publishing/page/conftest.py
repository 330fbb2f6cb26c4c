"""The browser, and a page in it, for the tests of the page."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from bench.publishing.history import Entry
from tests.bench.pages import HOSTILE, made, row, rows_of, search

if TYPE_CHECKING:
    from tests.bench.publishing.page.browser import Page


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    from selenium import webdriver

    from tests.bench.publishing.page.browser import CHROMIUM, DRIVER

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
    from tests.bench.publishing.page.browser import written

    methods = ["magnitude", HOSTILE, "a_very_long_name@spam(structure=kronecker,prior=parameter,weight_decay=1.85e-05)"]
    rows = rows_of(methods + [f"method_{k}" for k in range(37)])
    rows += rows_of(["magnitude", "method_1"], finetune_epochs=2)
    rows += rows_of(["magnitude", "method_1"], tuning="tuned", hyperparameters=search())[6:]
    rows += [row("refuses", status="unsupported", accuracy=None, error="declines " + "norms " * 20)]
    rows += [row("breaks", status="failed", accuracy=None, nll=None, ece=None, error=HOSTILE)]
    titles = ("accuracy: one-shot after training", "accuracy: fine-tuned 2 epochs", "ranks")
    plots = {f"plots/{k}.svg": title for k, title in enumerate(titles)}
    return written(tmp_path_factory.mktemp("page"), made(rows, plots=plots, history=(Entry("2026-01-31", ("Added",)),)), plots)


@pytest.fixture
def page(driver: Any, address: str) -> "Iterator[Page]":
    from tests.bench.publishing.page.browser import Page

    driver.get_log("browser")
    driver.get_log("performance")
    shown = Page(driver, address).open()
    yield shown
    shown.js("localStorage.clear()")
    assert driver.get_log("browser") == []
