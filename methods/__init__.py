"""Neural-network pruning methods behind one interface, for any `torch.nn.Module`.

    posterior = methods.train(model, batches, training="spam", epochs=30)
    mask = methods.prune(model, batches, method="opd", sparsity=0.95, posterior=posterior)

`batches` is any re-iterable of (inputs, targets), e.g. a list or a DataLoader. A new criterion is one file:

    @methods.register("mine")
    @dataclass(frozen=True, kw_only=True)
    class Mine(methods.Criterion):
        def score(self, problem): ...
"""

import warnings
from typing import Any

from methods.adapters import Importance
from methods.api import compact, prune, scores, train, train_pruned
from methods.checking.clauses import check
from methods.core.batch_norm import recalibrate_batchnorm
from methods.core.callbacks import EpochRecord
from methods.core.configurations import Configuration, Criterion, Granularity, Training
from methods.core.cutting import Pruner, cut, score, scored_once
from methods.core.hyperparameters import Choice, Float, Int, Range, Text, ranges
from methods.core.interface import (
    Batches,
    Cost,
    Posterior,
    Problem,
    Scores,
    Stage,
    Values,
    count_masked,
    derive,
)
from methods.core.masks import Mask, apply_mask, full_mask, kept_weights, mask_holds, shuffled, sparsity_of
from methods.core.population import NotAlike, fit_together
from methods.core.prunable import prunable
from methods.core.recipe import Recipe
from methods.core.regrowth import Regrowing
from methods.core.schedule import Gradual, Iterative, Lap, Move, Regrowth, Rewinding, Schedule
from methods.core.training_loop import fit, fit_run
from methods.core.training_run import TrainingRun
from methods.core.unaltered import Altered, unaltered_process
from methods.registry.options import Option, describe
from methods.registry.plugins import load_plugin
from methods.registry.registry import (
    Method,
    UnknownName,
    define,
    get,
    get_granularity,
    lookup,
    make,
    names,
    nearest,
    register,
    unknown,
)
from methods.registry.source_hash import code_hash, source_files, source_hash
from methods.structure.path_flow import effective_sparsity

# isort: split
# Last: their files may import the names above from here, as plug-ins do.
from methods import criteria, granularity, training
from methods.granularity.channel import changes_outputs
from methods.registry import named_methods  # noqa: F401 (registers them)

__all__ = [
    "Altered", "Batches", "Choice", "Configuration", "Cost", "Criterion", "EpochRecord", "Float", "Gradual", "Granularity",
    "Importance", "Int", "Iterative", "Lap", "Mask", "Method", "Move", "NotAlike", "Option", "Posterior", "Problem", "Pruner",
    "Range", "Recipe", "Regrowing", "Regrowth", "Rewinding", "Schedule", "Scores", "Stage", "Text", "Training", "TrainingRun",
    "UnknownName", "Values", "apply_mask", "changes_outputs", "check", "code_hash", "compact", "count_masked", "criteria",
    "cut", "define", "derive", "describe", "effective_sparsity", "fit", "fit_run", "fit_together", "full_mask", "get",
    "get_granularity", "granularity", "kept_weights", "load_plugin", "lookup", "make", "mask_holds", "names", "nearest",
    "prunable", "prune", "ranges", "recalibrate_batchnorm", "register", "score", "scored_once", "scores", "shuffled",
    "source_files", "source_hash", "sparsity_of", "train", "train_pruned", "training", "unaltered_process", "unknown",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The former name of `mask_holds`."""
    if name == "held":
        warnings.warn("methods.held is now called methods.mask_holds", DeprecationWarning, stacklevel=2)
        return mask_holds
    raise AttributeError(f"module 'methods' has no attribute '{name}'")
