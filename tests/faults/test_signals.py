"""Ctrl-C and SIGTERM at any moment: the program ends within five seconds, says so, and leaves no process."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from bench.cli import interruption, main
from tests.faults.programs import PLUGIN, ROOT, members, start

RUN = (
    "run", "--methods", "magnitude,hangs", "--datasets", "breast_cancer", "--seeds", "0", "--sparsities", "0.5", "--epochs", "2",
    "--finetune-epochs", "0", "--trials", "0", "--plugin", str(PLUGIN),
)  # fmt: skip


def started(folder: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until the method that hangs is at work: then the other one has its row, and the workers are there."""
    for _ in range(600):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        try:
            with sqlite3.connect(f"file:{folder}/.bench/store.db?mode=ro", uri=True) as store:
                if store.execute("select count(*) from rows").fetchone()[0] >= 2:
                    return
        except sqlite3.Error:
            pass
    raise AssertionError("no row after a minute")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes in /proc")
@pytest.mark.parametrize(
    ("moment", "number", "whole"),
    [
        ("starting", signal.SIGINT, True), ("working", signal.SIGINT, True), ("working", signal.SIGINT, False),
        ("working", signal.SIGTERM, False), ("starting", signal.SIGHUP, True),
    ],
)  # fmt: skip
def test_a_signal_ends_everything_within_five_seconds(tmp_path: Path, moment: str, number: signal.Signals, whole: bool) -> None:
    """`whole`: the terminal sends Ctrl-C to all processes of the program."""
    process = start(tmp_path, *RUN)
    if moment == "working":
        started(tmp_path, process)
    else:
        time.sleep(random.Random(f"{number} {whole}").uniform(0.5, 5))
    begin = time.monotonic()
    (os.killpg if whole else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == interruption.KEPT
    assert "Traceback" not in err
    time.sleep(0.5)
    assert not members(process.pid)


BLOCKED = """
import ctypes
import threading
from bench.cli import interruption
from tests.faults.programs import PLUGIN, ROOT, members, start

interruption.watch()
lock, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
library.pthread_mutex_lock(lock)
threading.Timer(1, print, ["ready"], {"flush": True}).start()  # the main thread is in the lock by then
library.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(("signals", "seconds"), [(1, 5), (2, 2)])
def test_it_ends_also_in_a_call_that_cannot_be_interrupted(signals: int, seconds: int) -> None:
    """As in a call of another library that waits for a lock: a few seconds after the first signal, at once at the second."""
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < seconds
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == interruption.MESSAGE


@pytest.mark.parametrize("raised", [ImportError("a module is half imported"), typer.Exit(1)])
def test_a_signal_that_comes_out_as_another_error_is_a_signal(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def app(*_: object, **__: object) -> None:
        interruption._received.append(signal.SIGINT)
        raise raised

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(interruption, "watch", lambda _: None)
    monkeypatch.setattr(interruption, "_received", [])
    monkeypatch.setattr(interruption, "end", end)
    monkeypatch.setattr(main, "app", app)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--methods", "magnitude"], interruption.KEPT), (["run", "--dry-run"], interruption.MESSAGE),
        (["verify", "run"], interruption.MESSAGE), ([], interruption.MESSAGE),
    ],
)  # fmt: skip
def test_only_what_computes_rows_says_that_it_keeps_them(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: int) -> None:
        raise SystemExit(interruption._message)

    monkeypatch.setattr(interruption, "_message", "")
    monkeypatch.setattr(interruption, "_received", [])
    monkeypatch.setattr(interruption, "end", end)
    monkeypatch.setattr(interruption.signal, "set_wakeup_fd", lambda *_, **__: None)
    monkeypatch.setattr(interruption.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main, "app", lambda *_, **__: interruption._received.append(signal.SIGINT))
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == message
