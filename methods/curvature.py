"""Diagonal curvature of the training loss from per-sample gradients.

    empirical Fisher    h_k = Σ_n (∂ℓ(f(x_n), y_n)/∂θ_k)²
    Monte-Carlo GGN     h_k = Σ_n (∂ℓ(f(x_n), ỹ_n)/∂θ_k)²,  ỹ_n ~ softmax(f(x_n))

For cross-entropy the generalised Gauss-Newton matrix equals the Fisher of the model's own predictions (Martens 2020, JMLR
21:146, section 9), so the second is an unbiased one-sample estimate of its diagonal. The first uses the labels instead: it
vanishes where the training data are fitted, and is no substitute for the GGN after training.
The square of a mini-batch's mean gradient is neither of them, so every sample's gradient is taken on its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.interface import Problem, Values

KINDS = ("ef", "mc")
CHUNK = 64  # samples whose gradients are held at once


@dataclass(frozen=True)
class Diagonal:
    """`values`: parameter name -> diagonal curvature, summed over the N training samples. `loss`: Σ_n ℓ(f(x_n), y_n) in nats."""

    values: Values
    loss: float


def diagonal(
    problem: Problem, kind: str, *, samples: int | None = None, names: list[str] | None = None, purpose: str = "curvature"
) -> Diagonal:
    """Diagonal curvature at the present weights, summed over the N training samples.

    `kind`: "ef" or "mc". `samples`: use about so many (whole batches, in the order of `problem.batches`) and scale the sum
    up to N; all where None. `names`: the parameters wanted, all trainable ones where None. The values are non-negative and
    of the parameters' shapes. The model should be in eval mode: batch statistics would couple the samples.
    Raises ValueError where "mc" is asked for with a loss other than cross-entropy.
    """
    if kind not in KINDS:
        raise ValueError(f"curvature '{kind}' is not one of {', '.join(KINDS)}")
    if kind == "mc" and problem.loss is not F.cross_entropy:
        raise ValueError("Monte-Carlo curvature samples labels from a softmax: it needs the cross-entropy loss")
    model = problem.model
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or (names and n in names)}
    wanted = {n: parameters[n] for n in (names or parameters)}
    fixed = {n: p.detach() for n, p in model.named_parameters() if n not in wanted}
    places = _places(model)
    generator = problem.generator(purpose)

    def sample_loss(weights: Values, x: Tensor, y: Tensor) -> Tensor:
        values = {**fixed, **weights}
        output = functional_call(model, {place: values[n] for place, n in places.items()}, (x.unsqueeze(0),), tie_weights=False)
        return problem.loss(output, y.unsqueeze(0))

    sample_gradients = vmap(grad_and_value(sample_loss), in_dims=(None, 0, 0))
    total = {n: torch.zeros_like(p) for n, p in wanted.items()}
    loss = 0.0
    seen = 0
    for x, y in _first(problem, samples):
        labels = y
        if kind == "mc":
            with torch.no_grad():
                logits = model(x)
                loss += float(problem.loss(logits, y)) * len(y)
                labels = _sample_labels(logits, generator)
        for x_chunk, y_chunk in zip(x.split(CHUNK), labels.split(CHUNK), strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
                gradients, losses = sample_gradients(wanted, x_chunk, y_chunk)
            for n, g in gradients.items():
                total[n] += g.square().sum(0)
            if kind == "ef":
                loss += float(losses.sum())
        seen += len(y)
    scale = problem.samples / seen
    return Diagonal({n: h * scale for n, h in total.items()}, loss * scale)


def _places(model: nn.Module) -> dict[str, str]:
    """Where each parameter stands -> its name, each module once: torch's own tying loses a module that has two names."""
    name_of = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{path}.{key}".lstrip("."): name_of[id(p)]
        for path, module in model.named_modules()
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def _first(problem: Problem, samples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of the training data, on the model's device, until so many samples are reached."""
    seen = 0
    for x, y in problem.batches:
        if samples is not None and seen >= samples:
            return
        yield x.to(problem.device), y.to(problem.device)
        seen += len(y)


def _sample_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One label per row of the logits (n, classes), drawn from their softmax by inverting its distribution function."""
    cumulative = logits.double().softmax(1).cumsum(1)
    u = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(logits.device)
    return torch.searchsorted(cumulative, u).clamp_(max=logits.shape[1] - 1).squeeze(1)
