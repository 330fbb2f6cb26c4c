"""Check the user's choice of machines and folders, without importing torch."""

import importlib.util
import os
from pathlib import Path

from bench.execution import executors
from bench.spec.choices import DEVICES, Resources
from bench.spec.errors import UserError, unknown


def check(resources: Resources) -> None:
    """Check everything that can be checked without importing torch, so that a mistake is said at once.

    Raises:
        UserError: a name is unknown, or a value is invalid.
    """
    if resources.executor not in executors.EXECUTORS:
        raise unknown("executor", resources.executor, executors.EXECUTORS)
    if resources.device not in DEVICES:
        raise unknown("device", resources.device, DEVICES)
    if resources.workers is not None and resources.workers < 1:
        raise UserError(f"--workers must be at least 1, got {resources.workers}")
    if resources.stack < 1:
        raise UserError(f"--stack must be at least 1, got {resources.stack}")
    if resources.data_root is not None and not resources.data_root.is_dir():
        raise UserError(f"--data-root '{resources.data_root}' is not a directory")
    if resources.log is not None:
        _check_log(resources.log)


def _check_log(folder: Path) -> None:
    """Raise UserError if no event files can be written to a folder."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--log needs TensorBoard, which is not installed: pip install 'razorbench[tensorboard]'")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise UserError(f"--log '{folder}': '{there}' is not a directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"--log '{folder}': no permission to write to '{there}'")
