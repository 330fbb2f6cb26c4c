"""How a row was computed: the versions, commit, device and threads of the process."""

import functools
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.trial.device import numerics

SHIPPED = "RAZORBENCH_SHIPPED"  # environment variable of workers that got this code from a run, see `shipped`
PACKAGES = ("timm", "torchmetrics")  # packages other than torch that affect the numbers


def versions() -> dict[str, str]:
    """Package -> installed version, for the packages other than torch that affect the numbers."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def provenance(device: str, threads: int, stack: int = 1) -> dict[str, Any]:
    """The columns of a row that describe how it was computed.

    For a CPU, the column `device` has the instruction set that torch uses, because it decides how sums are rounded. For a GPU, the column
    `environment` says how it computes, see `bench.trial.device`.

    Args:
        device: torch's name of the device.
        threads: the number of torch threads.
        stack: the number of networks that are trained as one.

    Returns:
        Column -> value.
    """
    which = torch.device(device)
    name = torch.backends.cpu.get_cpu_capability() if which.type == "cpu" else torch.get_device_module(which).get_device_name(which)
    code = (
        json.loads(os.environ[SHIPPED])
        if SHIPPED in os.environ
        else {"version": importlib.metadata.version("razorbench"), "commit": _commit()}
    )
    return {
        "version": code["version"],
        "commit": code["commit"],
        "torch": torch.__version__,
        "device": f"{which.type}: {name}" if name else which.type,
        "environment": json.dumps(
            {"threads": threads, **versions(), **numerics(which), **({"stack": stack} if stack > 1 else {})}, sort_keys=True
        ),
    }


def shipped() -> str:
    """Version and commit of this code, and the torch version, as JSON, for workers that get the code from here."""
    return json.dumps({"version": importlib.metadata.version("razorbench"), "commit": _commit(), "torch": torch.__version__})


def shipped_torch() -> str:
    """The torch version of the run that shipped the code to this process; '' if it was not shipped."""
    return str(json.loads(os.environ.get(SHIPPED, "{}")).get("torch", ""))


def _commit() -> str:
    """The git commit of this source tree, with a '+' if files are changed; empty if it is not a git checkout."""
    here = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed.stdout.strip() else "")
