"""Where a row comes from: versions, commit and device of this run."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import torch


@functools.cache
def provenance(device: str) -> dict[str, Any]:
    """Versions, commit and device of this run: of a processor the instructions that torch uses, for they decide the rounding."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "version": importlib.metadata.version("razorbench"),
        "commit": _commit(),
        "torch": torch.__version__,
        "device": f"{kind}: {name}" if name else kind,
    }


def _commit() -> str:
    """The commit of this source tree, '' where it is no checkout; a '+' marks changes not committed."""
    here = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed.stdout.strip() else "")
