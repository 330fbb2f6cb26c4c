"""Curvature of the loss: diagonal, in blocks, Kronecker-factored."""

from methods.curvature.compute import curvature

__all__ = ["curvature"]
