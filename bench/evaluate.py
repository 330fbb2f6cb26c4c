"""What a network is worth and what it costs: accuracy, calibration, parameters, FLOPs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.data import Split
from methods import Mask, prunable
from methods.pruning import evaluating

BATCH = 500
ECE_BINS = 15


@dataclass(frozen=True)
class Quality:
    """accuracy, top5 and ece in [0, 1]; nll in nats and brier in [0, 2] a sample; top5 None for fewer than six classes."""

    accuracy: float
    top5: float | None
    nll: float
    brier: float
    ece: float


@torch.no_grad()
def logits_of(model: nn.Module, split: Split) -> Tensor:
    """The model's outputs (n, classes) on a split, in eval mode, on the CPU."""
    model.eval()
    return torch.cat([model(x) for x in split.inputs.split(BATCH)]).float().cpu()


def quality(logits: Tensor, targets: Tensor) -> Quality:
    """Quality of logits (n, classes) against labels (n). Raises FloatingPointError where a logit is not finite.

    NLL is the cross-entropy in double precision, finite whatever the confidence; Brier the mean of Σ_c (p_c - 1[c = y])²
    (Brier 1950, the multi-class form); ECE has 15 equal bins of confidence, L1 norm (Guo et al. 2017).
    """
    # Late: seconds of import that the planning process, which evaluates nothing, need not wait for.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    if not logits.isfinite().all():
        raise FloatingPointError("the network's outputs are not finite")
    targets = targets.cpu()
    classes = logits.shape[1]
    logits = logits.double()
    probabilities = logits.softmax(1)

    def accuracy(k: int) -> float:
        """Top-k accuracy as the fraction it is: torchmetrics rounds it to single precision."""
        value = multiclass_accuracy(logits, targets, classes, average="micro", top_k=k, validate_args=False)
        return round(float(value) * len(targets)) / len(targets)

    return Quality(
        accuracy=accuracy(1),
        top5=accuracy(5) if classes > 5 else None,
        nll=float(F.cross_entropy(logits, targets)),
        brier=float((probabilities - F.one_hot(targets, classes)).square().sum(1).mean()),
        ece=float(multiclass_calibration_error(probabilities, targets, classes, ECE_BINS, norm="l1", validate_args=False)),
    )


def switched_off(logits: Tensor) -> bool:
    """Whether a network has stopped looking at its inputs: the same class for every one of them."""
    return bool((logits.argmax(1) == logits[0].argmax()).all())


@dataclass(frozen=True)
class Size:
    """Parameters and FLOPs for one input, of the dense network and of what a mask keeps of them."""

    prunable: int
    kept: int
    parameters: int
    parameters_kept: int
    flops: int
    flops_kept: int
    layers_collapsed: int


def layer_flops(model: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> tuple[int, dict[str, int]]:
    """(all FLOPs, weight name -> FLOPs of its layer) for one input: a multiply and an add count as two."""
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(torch.zeros(1, *input_shape, device=device))
    # The counter names a module by its path below the root's class name.
    by_module = {path.partition(".")[2]: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    layers = {name: int(by_module.get(name.removesuffix(".weight"), 0)) for name in prunable(model)}
    return int(counter.get_total_flops()), layers


def size(model: nn.Module, mask: Mask, flops: tuple[int, dict[str, int]]) -> Size:
    """Counts of a masked network; `flops` from `layer_flops`. A layer's FLOPs shrink with its share of kept weights."""
    kept = {n: int(m.sum()) for n, m in mask.items()}
    total, layers = flops
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(m.numel() for m in mask.values())
    saved = sum(layers[n] * (mask[n].numel() - k) / mask[n].numel() for n, k in kept.items())
    return Size(
        prunable=weights,
        kept=sum(kept.values()),
        parameters=parameters,
        parameters_kept=parameters - weights + sum(kept.values()),
        flops=total,
        flops_kept=round(total - saved),
        layers_collapsed=sum(k == 0 for k in kept.values()),
    )
