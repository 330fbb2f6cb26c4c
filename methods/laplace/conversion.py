"""Laplace approximations from the posterior that a training left."""

from typing import Any

import torch
from laplace import DiagLaplace
from torch import nn
from torch.nn.utils import parameters_to_vector

from methods.core.interface import Posterior
from methods.curvature.blocks import Block, Diagonal, Kronecker
from methods.laplace.backend import Backend, factor_entries
from methods.laplace.block_laplace import BlockLaplace, Factors
from methods.posterior.marginal_likelihood import log_marginal_likelihood


def from_posterior(
    model: nn.Module, posterior: Posterior, likelihood: str = "classification", outputs: int = 0, **options: Any
) -> DiagLaplace | BlockLaplace:
    """Make a fitted Laplace approximation from the posterior of the training `spam`, without data.

    `la.loss` is computed from the last marginal likelihood; it is NaN if there is none. A unit-wise prior is passed as one
    precision per parameter; with Kronecker factors it is then projected, and its evidence is at most the exact one of SpaM.

    Args:
        model: the trained network.
        posterior: the result of the training.
        likelihood: "classification", or "regression" if the loss of the training was `half_squared_error`.
        outputs: number of outputs (regression), for the normalising constant.
        options: further arguments of the class.

    Returns:
        A `BlockLaplace` if the posterior has Kronecker factors, otherwise a `DiagLaplace`.

    Raises:
        ValueError: if the posterior has no curvature of a trainable parameter.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    missing = [n for n in parameters if n not in posterior.curvature]
    if missing:
        raise ValueError(f"the posterior has no curvature of '{missing[0]}': train with 'spam', or fit a Laplace approximation on data")
    blocks: dict[str, Block] = {
        n: Kronecker(*posterior.factors[n], p.shape) if n in posterior.factors else Diagonal(posterior.curvature[n])
        for n, p in parameters.items()
    }
    prior = {n: posterior.prior[n] for n in parameters}
    if any(d.dim() for d in prior.values()):
        vector = torch.cat([prior[n].expand(p.shape).flatten() for n, p in parameters.items()])
    else:
        vector = torch.stack(list(prior.values()))
        vector = vector[:1] if bool((vector == vector[0]).all()) else vector
    t = posterior.temperature
    cls = BlockLaplace if posterior.factors else DiagLaplace
    la = cls(model, likelihood, **{"prior_precision": vector, "temperature": t, "backend": Backend, **options})
    la.mean = parameters_to_vector(la.params).detach()
    la.n_data, la.n_outputs, la.loss = posterior.samples, outputs, float("nan")
    if posterior.marginal_likelihood:
        squares = {n: p.detach().square() for n, p in parameters.items()}
        la.loss = t * (log_marginal_likelihood(blocks, prior, squares, 0.0) - posterior.marginal_likelihood[-1])
    unscaled = [block.scaled(t) for block in blocks.values()]
    if isinstance(la, BlockLaplace):
        la.H_facs = Factors([entry for block in unscaled for entry in factor_entries(block, 1.0)], [p.shape for p in la.params])
        la.H = la.H_facs.decompose()
    else:
        la.H = torch.cat([block.diagonal().flatten() for block in unscaled])
    return la
