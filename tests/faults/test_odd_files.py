"""Odd files and texts: a valid result, or one line that says what is wrong; never another exception, and never much memory.

Every property is tried on a few hundred mutated inputs here, and on 20,000 by `tox -e slow`.
"""

import contextlib
import csv
import hashlib
import io
import json
import resource
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import methods
from bench.cli import options
from bench.export import load
from bench.networks import build
from bench.planning import catalogue
from bench.publishing import board_folder, merge
from bench.publishing.board_folder import Board
from bench.ranking import leaderboard
from bench.spec import strict_json
from bench.spec.errors import LONGEST, UserError, described, shortened
from bench.spec.row import COLUMNS, Row
from bench.spec.suite import load_suite
from bench.storage import results_csv
from tests.conftest import TINY

Bench = Callable[..., tuple[int, str, str]]
FEW, MANY = 300, 20_000
QUIET = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
MEGABYTES = 1500  # that all examples of a test may add to the largest memory of this process


# --- mutated inputs

WORDS = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b"\"", b"'", b";", b",", b"=", b"#", b"\\", b"\x1b[2J", b"\xe2\x80\xa8",
    "٣".encode(), "é".encode(), b"nan", b"inf", b"-inf", b"-1", b"-----1", b"1e999", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 5000, b"true",
    b"null", b"None", b"{}", b"[]", b"[" * 2000, b"{\"a\":" * 2000, b"(", b")", b"(((", b"[[x]]", b"{1}", b"1.0", b"0.0", b"1_0", b" ",
    b"x" * 200_000, b"\"\"\"", b"a.b.c", b"\\u0000", b"\\ud800", b"../../x", b"=1+1", b"@", b"lr=", b"schedule=", b"[1]", b":", b"3:4",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals after one to four cuts, repetitions and insertions."""
    text = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 5, 40, 400])))
        more = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=4), st.just(text[start:end] * 2)))
        text = text[:start] + more + text[end:]
    return text


def texts(originals: list[str]) -> st.SearchStrategy[str]:
    return mutated([text.encode() for text in originals]).map(lambda content: content.decode(errors="replace"))


# --- properties: each takes an input, and raises if the promise is broken

SUITE = """
name = "odd"
description = "all kinds of values"
blocks = [{ dataset = "digits", architectures = ["mlp", "lenet5"] }, { dataset = "folder:x", architectures = ["resnet18"] }]
sparsities = [0.5, 0.9]
seeds = [0, 1]
methods = ["all", "magnitude(weight_decay=0.003)"]
epochs = 3
finetune_epochs = [0, 1]
lr_scale = 0.5
augment = ["crop"]
mean = [0.5]
std = [0.25]
validation = 0.2
train_limit = 100
tuning_seeds = 3

[architecture.lenet5]
batch_size = 64
lr_scale = 2.0
"""
FOLDER = Path(tempfile.mkdtemp(prefix="razorbench-odd-"))


def suite_file(content: bytes) -> None:
    path = FOLDER / "suite.toml"
    path.write_bytes(content)
    try:
        suite = load_suite(str(path))
    except UserError as error:
        check_line(error)
        return
    path.write_text(board_folder.suite_toml(suite), encoding="utf-8")
    assert load_suite(str(path)) == suite, "what is published can be read"


def rows_of_a_csv() -> list[Row]:
    common: dict[str, Any] = {
        "suite": "tiny", "dataset": "breast_cancer", "architecture": "mlp", "granularity": "weight", "match": "weights", "training": "map",
        "tuning": "default", "ablation": "none", "epochs": 3, "finetune_epochs": 0, "status": "ok", "prunable_weights": 1000,
        "parameters": 1010, "flops": 2000, "accuracy": 0.9, "nll": 0.3, "brier": 0.1, "ece": 0.05, "dense_accuracy": 0.9, "dense_nll": 0.3,
        "parameters_kept": 500, "flops_kept": 900, "layers_collapsed": 0, "train_seconds": 1.0, "plugin_metrics": '{"mine": 1.5}',
        "environment": '{"threads": 1}', "error": 'a "quoted", text',
    }  # fmt: skip
    said = json.dumps({"training": {"lr": 0.1, "weight_decay": 0.001}, "criterion": {}})
    dense = Row(**common, method="dense", criterion="", stage="", sparsity=0.0, seed=0, kept_weights=1000, sparsity_reached=0.0)
    pruned = Row(
        **common, method="random", criterion="random", stage="after", sparsity=0.5, seed=0, kept_weights=500, sparsity_reached=0.5,
        hyperparameters=said,
    )  # fmt: skip
    return [replace(dense, hyperparameters='{"training": {}}'), pruned, replace(pruned, seed=1)]


CSV = results_csv.rows_text(rows_of_a_csv()).encode()


def csv_file(content: bytes) -> None:
    path = FOLDER / "odd.csv"
    path.write_bytes(content)
    try:
        rows = results_csv.read_rows(path)
    except ValueError as error:
        check_line(error, str(path))
        rows = []
    try:
        leaderboard.leaderboard(rows)
    except ValueError as error:
        check_line(error)
    suite = load_suite("digits")
    try:
        checked = merge.check(path, Board(suite, ()))
    except UserError as error:
        check_line(error)
    else:
        assert checked.refused, "the rows are for another suite"


@st.composite
def csv_cells(draw: st.DrawFn) -> bytes:
    """The CSV with other texts in some of its cells: the file itself is well-formed."""
    lines = list(csv.reader(io.StringIO(CSV.decode())))
    for _ in range(draw(st.integers(1, 3))):
        cell = draw(st.one_of(texts(["0.5", "{}", '{"training": {"lr": 0.1}}', "ok", "map", "3"]), st.text(max_size=10)))
        lines[draw(st.integers(1, 3))][draw(st.integers(0, len(COLUMNS) - 1))] = cell
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue().encode("utf-8", errors="replace")


NAMES = [
    "magnitude(weight_decay=0.003)", "opd(form=eigenbasis)@spam(prior=layer)", "obd(schedule=iterative)", "all@spam", "imp",
    "snip(n_rounds=5)", "magnitude,random,opd", "channel(floor=0.1,round_to=8)", "2:4", "weight",
]  # fmt: skip


def method_names(text: str) -> None:
    for function in (catalogue.select_methods, methods.get, methods.get_granularity, methods.describe):
        with contextlib.suppress(UserError, ValueError):
            assert function(text)  # type: ignore[operator]


def option_values(text: str) -> None:
    for kind in (int, float):
        try:
            values = options.numbers("--seeds", text, kind)
        except UserError as error:
            check_line(error)
        else:
            assert values
            assert all(type(value) is kind for value in values)
    assert isinstance(options.names(text), tuple)


def json_cell(text: str) -> None:
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        check_line(error)
    else:
        json.dumps(value).encode()


def check_line(error: Exception, said: str = "") -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 3000
    assert said in text


# --- cards


def exported(compact: bool) -> Path:
    """A folder as `export` writes it, of an MLP on rows of four features."""
    folder = FOLDER / f"net-{compact}"
    if not (folder / "card.json").exists():
        folder.mkdir(exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            model = build.create("mlp", (4,), 2)
        batches = [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))]
        mask = methods.prune(model, batches, method="magnitude", sparsity=0.5, granularity="channel")
        save_file({n: t.clone() for n, t in mask.items()}, folder / "mask.safetensors")
        if compact:
            kept = {f"rows.{n}": m.flatten(1).any(1) for n, m in mask.items()}
            kept |= {f"columns.{n}": m.transpose(0, 1).flatten(1).any(1) for n, m in mask.items()}
            save_file(kept, folder / "mask.safetensors")
            model = methods.compact(model, mask, input_shape=(4,))
        save_file({n: t.clone() for n, t in model.state_dict().items()}, folder / "model.safetensors")
        card = {
            "format": "razorbench.network.v1", "architecture": {"name": "mlp", "input_shape": [4], "classes": 2}, "method": "magnitude",
            "granularity": "channel", "compact": compact, "sha256": digest(folder), "row": {"accuracy": 0.5},
        }  # fmt: skip
        (folder / "card.json").write_text(json.dumps(card))
    return folder


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


CARDS = {"card.json", "model.safetensors", "mask.safetensors"}


def card_files(changed: tuple[bool, str, bytes]) -> None:
    """A folder with one changed file; the digest in the card follows, as a forger would write it."""
    compact, name, content = changed
    original, folder = exported(compact), FOLDER / "changed"
    folder.mkdir(exist_ok=True)
    for file in CARDS:
        (folder / file).write_bytes((original / file).read_bytes())
    (folder / name).write_bytes(content)
    if name == "model.safetensors":
        text = (folder / "card.json").read_text().replace(digest(original), digest(folder))
        (folder / "card.json").write_text(text)
    try:
        model, card = load(folder)
    except ValueError as error:
        check_line(error)
    else:
        assert isinstance(card, dict)
        assert model(torch.zeros(2, 4)).shape == (2, 2)


@st.composite
def cards(draw: st.DrawFn) -> tuple[bool, str, bytes]:
    compact, name = draw(st.booleans()), draw(st.sampled_from(sorted(CARDS)))
    return compact, name, draw(mutated([(exported(compact) / name).read_bytes()]))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(
        ["resnet18", "vit_giant_patch14_clip_224", "mlp", "lenet5", "x.py:f", "2:4", "channel", 10**9, 10**12, [3, 10**6, 10**6]])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@st.composite
def card_values(draw: st.DrawFn) -> tuple[bool, str, bytes]:
    """A card with another value, or without one."""
    compact = draw(st.booleans())
    card = json.loads((exported(compact) / "card.json").read_text())
    for _ in range(draw(st.integers(1, 2))):
        inside = draw(st.sampled_from([card, card.get("architecture") if isinstance(card.get("architecture"), dict) else card]))
        if not inside:
            continue
        key = draw(st.sampled_from(sorted(inside)))
        if draw(st.booleans()):
            inside[key] = draw(VALUES)
        else:
            del inside[key]
    return compact, "card.json", json.dumps(card).encode()


PROPERTIES: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "suites": (suite_file, mutated([SUITE.encode(), TINY.encode()])),
    "csv files": (csv_file, mutated([CSV])),
    "csv cells": (csv_file, csv_cells()),
    "method names": (method_names, texts(NAMES)),
    "any text as a method": (method_names, st.text(max_size=30)),
    "options": (option_values, texts(["0,1,2", "0.5,0.9", "1e-3"])),
    "json": (json_cell, texts(['{"a": [1, 2.5, null, true, "x"]}'])),
    "files of a card": (card_files, cards()),
    "values of a card": (card_files, card_values()),
}


def holds(name: str, examples: int) -> None:
    """Try a property on a number of inputs."""
    function, inputs = PROPERTIES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    settings(max_examples=examples, phases=phases, **QUIET)(given(inputs)(lambda value: function(value)))()  # type: ignore[arg-type]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.mark.parametrize("name", PROPERTIES)
def test_odd_input_is_a_result_or_described(name: str) -> None:
    holds(name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_much_odd_input_is_a_result_or_described(name: str) -> None:
    holds(name, MANY)


# --- single files, with what is said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name = \"\xff\"", "line 1 is not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a" + b".a" * 100_000 + b" = 1", "line 1 has more than 1000 dots"),
        (b"a" + b".a" * 900 + b" = 1", "nested more than 20 deep"),
        (SUITE.replace("lr_scale = 0.5", "lr_scale = inf").encode(), "lr_scale: must be a finite number, got inf"),
        (SUITE.replace("lr_scale = 0.5", "lr_scale = nan").encode(), "lr_scale: must be a finite number, got nan"),
        (SUITE.replace("epochs = 3", "epochs = " + "9" * 5000, 1).encode(), "is not TOML"),
        (SUITE.replace("epochs = 3", "epochs = 0x" + "f" * 5000, 1).encode(), "epochs: a whole number must fit into 64 bits"),
        (SUITE.replace("epochs = 3", "epochs = 9223372036854775807", 1).encode(), "epochs: must be less than or equal to"),
        (SUITE.replace("tuning_seeds = 3", "tuning_seeds = 1000000000").encode(), "tuning_seeds: must be less than or equal to 1000"),
        (SUITE.replace("all kinds", "all \\u0007 kinds").encode(), "description: a text must not contain the control character U+0007"),
        (SUITE.replace("all kinds", "all \\n kinds").encode(), "description: a text must not contain the control character U+000A"),
        (SUITE.replace("all kinds", "all \x00 kinds").encode(), "is not TOML"),
        (b"x = 1\n" * 500_000, "has more than 1000000 bytes"),
        (b"", "the key 'name' is missing"),
    ],
)  # fmt: skip
def test_a_broken_suite_is_described(tiny: Path, bench: Bench, content: bytes, said: str) -> None:
    Path("odd.toml").write_bytes(content)
    code, out, err = bench("status", "--suite", "odd.toml")
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tiny.iterdir()) == ["odd.toml", "tiny.toml"]


def test_a_suite_with_a_byte_order_mark_or_windows_lines_is_read(tiny: Path) -> None:
    plain = load_suite("tiny.toml")
    for content in (b"\xef\xbb\xbf" + TINY.encode(), TINY.replace("\n", "\r\n").encode()):
        Path("odd.toml").write_bytes(content)
        assert load_suite("odd.toml") == plain


def test_what_is_no_file_is_described(tiny: Path, bench: Bench) -> None:
    (tiny / "folder.toml").mkdir()
    (tiny / "endless.toml").symlink_to("/dev/zero")
    for name in ("folder.toml", "endless.toml", "nowhere.toml"):
        code, _, err = bench("status", "--suite", name)
        assert code == 2
        assert err.startswith(f"error: cannot read suite file '{name}': ")
    with pytest.raises(UserError, match="null byte"):
        load_suite("x\0.toml")


HEADER = ",".join(COLUMNS).encode()
BAD_CSV = [
    (b"", "not the header"),
    (HEADER.replace(b",", b";") + b"\n", "columns must be separated by commas"),
    (b"\xef\xbb\xbf" + CSV, "byte-order mark"),
    (CSV.decode().encode("utf-16"), "byte-order mark"),
    (CSV + b"tiny,x\n", "line 5: 2 cells, expected"),
    (CSV.replace(b",0.5,", b",1.0,", 1), "sparsity: should be less than 1, got '1.0'"),
    (CSV.replace(b",0.5,", b",nan,", 1), "sparsity: should be a finite number, got 'nan'"),
    (CSV.replace(b",0.5,", b",-0.5,", 1), "sparsity: should be greater than or equal to 0, got '-0.5'"),
    (CSV.replace(b"breast_cancer", b"x" * 200_000, 1), "line 2: not CSV: a cell has more than 131072 characters"),
    (CSV.replace(b"breast_cancer", b"x\0y", 1), "line 2: a zero byte"),
    (CSV.replace(b"breast_cancer", b"x\x1b[2Jy", 1), "dataset: should not contain control characters, got 'x?[2Jy'"),
    (CSV.replace(b"breast_cancer", b"\xff", 1), "line 2: not UTF-8"),
    (CSV + b'"unclosed', "not CSV: unexpected end of data"),
    (HEADER.replace(b"seed", b"sparsity") + b"\n", "not the header"),
    (CSV.replace(b"{}", b"[" * 50_000, 1), "JSON is nested too deeply"),
    (CSV.replace(b'""mine"": 1.5', b'""mine"": [1]', 1), "plugin_metrics: should be a JSON object of finite numbers"),
    (CSV.replace(b",1000,", b"," + b"9" * 30 + b",", 1), "prunable_weights: "),
]


@pytest.mark.parametrize(("content", "said"), BAD_CSV, ids=[said for _, said in BAD_CSV])
def test_a_broken_csv_is_one_line_for_every_command(tiny: Path, bench: Bench, content: bytes, said: str) -> None:
    (tiny / "odd" / "results").mkdir(parents=True)
    for path in ("odd/results.csv", "odd/results/random.csv"):
        Path(path).write_bytes(content)
    for command in (("table", "odd/results.csv"), ("verify", "odd"), ("run", "--suite", "tiny.toml", "--tuned", "odd")):
        code, _, err = bench(*command)
        assert code == 2
        assert said in err, command
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert len(err) < 1000


def test_the_error_of_a_row_fits_into_a_cell(tmp_path: Path) -> None:
    error = described(ValueError("x\x1b[2J " * 100_000))
    assert len(error) == LONGEST
    assert error.startswith("ValueError: x?[2J x?[2J")
    assert error.endswith("...")
    assert shortened("plain  text\nof two lines") == "plain text of two lines"
    row = replace(rows_of_a_csv()[0], status="failed", error=error)
    results_csv.write_rows([row], tmp_path / "x.csv")
    assert results_csv.read_rows(tmp_path / "x.csv") == [row]


@pytest.mark.parametrize(
    "name",
    ["obd(schedule=[1])", "obd(schedule={1})", "opd(form=-----1)", "magnitude(lr=" + "[" * 500 + ")", "x" * 100_000, "magnitude(lr=1j)",
     "magnitude(lr=\u0663)", "magnitude(lr=1_0)", "\u0663:\u0664", "magnitude\x1b[2J", "all@", "@", "(", "()", ",", "magnitude(lr=nan)"],
)  # fmt: skip
def test_an_odd_name_of_a_method_is_described(tiny: Path, bench: Bench, name: str) -> None:
    for command in (("run", "--suite", "tiny.toml", "--methods", name), ("run", "--suite", "tiny.toml", "--granularity", name)):
        code, out, err = bench(*command)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "\x1b" not in err
    assert not (tiny / ".bench").exists()


@pytest.mark.parametrize("option", ["--seeds", "--sparsities", "--finetune-epochs", "--mean", "--datasets", "--architectures"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1_0", "\u0663", "9" * 5000, "[1]", ",", "x y", "1;2", "\x1b[2J"])
def test_an_odd_value_of_an_option_is_described(tiny: Path, bench: Bench, option: str, value: str) -> None:
    code, out, err = bench("status", "--suite", "tiny.toml", option, value)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_giant_network_in_a_card_is_refused_before_it_is_built(tmp_path: Path) -> None:
    original = exported(False)
    card = json.loads((original / "card.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for architecture in (
        {"name": "vit_giant_patch14_clip_224", "input_shape": [3, 224, 224], "classes": 1000},
        {"name": "mlp", "input_shape": [4], "classes": 10**10},
        {"name": "mlp", "input_shape": [4, 10**5, 10**5], "classes": 2},
        {"name": "resnet18", "input_shape": [3, 10**7, 10**7], "classes": 2},
    ):
        for file in CARDS:
            (tmp_path / file).write_bytes((original / file).read_bytes())
        (tmp_path / "card.json").write_text(json.dumps(card | {"architecture": architecture}))
        with pytest.raises(ValueError, match=r"holds no exported network|holds the weights of another network"):
            load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
