"""What the page says about a leaderboard as a whole: its counts, and each method's hyperparameters without repetition."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.publishing.page import about
from bench.storage import results_csv
from tests.bench.pages import made, rows_of

ROOT = Path(__file__).resolve().parents[4]
BOARDS = sorted(path.parent for path in (ROOT / "leaderboards").glob("*/results"))


def said(*, lr: float = 0.1, finetuning: float | None = None, tuned: float | None = None) -> str:
    """Hyperparameters as a row has them. `finetuning`: learning rate of fine-tuning. `tuned`: what a search found on validation data."""
    parts: dict[str, Any] = {"criterion": {}, "training": {"lr": lr}}
    parts |= {} if finetuning is None else {"finetuning": {"lr_scale": finetuning}}
    parts |= {} if tuned is None else {"tuning": {"trials": 10, "validation": {"tuned": tuned}}}
    return json.dumps(parts)


def settings(*lines: tuple[str, str, str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(tuning, where, pairs) of `about.recipes`, for one method. `lines`: tuning, data set, hyperparameters."""
    table = pd.DataFrame(lines, columns=["tuning", "dataset", "hyperparameters"])
    table = table.assign(plain="snip", method="snip", architecture="mlp", criterion="snip", training="map", stage="init")
    (found,) = about.recipes(table)
    return [(one["tuning"], one["where"], one["pairs"]) for one in found["settings"]]


def test_a_setting_is_shown_once_with_and_without_fine_tuning() -> None:
    one_shot, whole = said(), said(finetuning=0.3)
    both = [("training.lr", "0.1"), ("finetuning.lr_scale", "0.3")]
    assert settings(("default", "digits", one_shot), ("default", "digits", whole)) == [("default", "digits / mlp", both)]
    assert settings(("default", "digits", one_shot)) == [("default", "digits / mlp", both[:1])]
    found = settings(("default", "digits", one_shot), ("default", "digits", whole), ("default", "mnist", said(lr=0.2)))
    assert found == [("default", "digits / mlp", both), ("default", "mnist / mlp", [("training.lr", "0.2")])], "other values stay apart"


def test_what_a_search_cost_does_not_make_another_setting() -> None:
    lines = [("tuned", name, said(lr=lr, tuned=k / 10)) for k, (name, lr) in enumerate([("a", 0.2), ("b", 0.1), ("c", 0.1)])]
    assert settings(("default", "a", said()), *lines) == [
        ("default", "a / mlp", [("training.lr", "0.1")]),
        ("tuned", "b / mlp, c / mlp", [("training.lr", "0.1")]),
        ("tuned", "a / mlp", [("training.lr", "0.2")]),
    ]
    assert settings(*(("tuned", name, said(tuned=0.5)) for name in "ab")) == [("tuned", "every block", [("training.lr", "0.1")])]


def test_a_text_that_is_no_json_is_shown_as_it_is() -> None:
    assert settings(("default", "digits", "{lr: 1")) == [("default", "digits / mlp", [("", "{lr: 1")])]


def counts(source: str) -> dict[str, str]:
    """Unit -> number, as they stand at the top of a page."""
    facts = source.split('<dl class="facts">')[1].split("</dl>")[0]
    return dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", facts))


def test_the_page_counts_no_rows_of_dense_networks() -> None:
    rows = 2 * 2 * 3 * 3  # methods, data sets, sparsities, seeds
    found = counts(made(rows_of(["magnitude", "snip"])))
    assert found == {"methods": "2", "blocks": "2", "seeds": "3", "sparsities": "3", "rows": str(rows)}


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_a_published_page_and_the_list_of_all_say_the_same_numbers(folder: Path) -> None:
    files = sorted((folder / "results").glob("*.csv"))
    pruned = sum(bool(row.criterion) for file in files for row in results_csv.read_rows(file))
    assert counts((folder / "index.html").read_text())["rows"] == f"{pruned:,}"
    line = (folder.parent / "index.html").read_text().split(f'href="{folder.name}/index.html"')[1].split("</tr>")[0]
    assert f">{pruned:,}</td>" in line
