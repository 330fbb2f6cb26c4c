"""Where a row comes from: versions, commit, device and threads of the process that computes it."""

import functools
import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("timm", "torch-pruning", "torchmetrics")  # what decides numbers beside torch


def versions() -> dict[str, str]:
    """Package -> version, of those that decide numbers beside torch."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def provenance(device: str, threads: int) -> dict[str, Any]:
    """The columns of a row that say how it was computed: of a processor the instructions that torch uses, for they decide the rounding.

    Args:
        device: of the computation, as torch names it.
        threads: with how many it is done.
    """
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "version": importlib.metadata.version("razorbench"),
        "commit": _commit(),
        "torch": torch.__version__,
        "device": f"{kind}: {name}" if name else kind,
        "environment": json.dumps({"threads": threads, **versions()}, sort_keys=True),
    }


def _commit() -> str:
    """The commit of this source tree, '' where it is no checkout; a '+' marks changes not committed."""
    here = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed.stdout.strip() else "")
