"""The program in a process of its own, for tests that end it in the middle."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).parent / "misbehaving.py"
COSTS = ["score_seconds", "train_seconds", "latency_ms", "dense_latency_ms", "peak_memory_mb"]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the program in a folder and in a session of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def finished(process: "subprocess.Popen[str]", seconds: float = 300) -> tuple[int, str, str]:
    """Wait for the end: (exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def program(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the program to its end."""
    return finished(start(folder, *arguments))


def rows(folder: Path) -> Any:
    """The rows in out/results.csv, by method."""
    return bench.read(folder / "out" / "results.csv").set_index("method")


def members(session: int) -> dict[int, str]:
    """The processes of a session that have not ended: process -> its command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found
