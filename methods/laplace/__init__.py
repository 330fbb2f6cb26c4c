"""laplace-torch with the curvature of this package, for every kind of layer and every structure of the prior.

    Laplace(model, "classification", hessian_structure="diag", backend=Backend, backend_kwargs={"kind": "mc"})
    BlockLaplace(model, "classification", prior_precision=d)      d scalar, layer-, unit- or parameter-wise
    from_posterior(model, posterior)                              the posterior of `spam`, without another pass over the data

This package imports laplace-torch, which takes seconds; nothing else in `methods` imports it.

Reference: Daxberger et al. 2021, "Laplace redux"; see `methods.curvature.blocks` for P under each prior.
"""

from methods.laplace.backend import Backend
from methods.laplace.block_laplace import BlockLaplace, Factors
from methods.laplace.conversion import from_posterior

__all__ = ["Backend", "BlockLaplace", "Factors", "from_posterior"]
