"""Requests that prune trained networks as they are (`epochs = 0`): what they need, and which methods can do it."""

from collections.abc import Iterable

import methods
from bench.networks import build
from bench.spec import own_file
from bench.spec.errors import UserError
from bench.spec.protocol import Protocol
from bench.spec.suite import Suite
from methods import Method, Stage


def protocol_of(suite: Suite, dataset: str, architecture: str) -> Protocol:
    """The protocol of a suite for a data set and an architecture.

    A pretrained network that is not trained further gets its inputs as timm has trained it: mean and standard deviation are those of
    its pretrained weights, unless the suite has its own.
    """
    protocol = suite.protocol(dataset, architecture)
    if protocol.pretrained and not protocol.epochs and protocol.mean is None:
        return protocol.with_moments(*build.moments(architecture))
    return protocol


def check_trained(suite: Suite, ablations: Iterable[str]) -> None:
    """Check that a suite without training has trained networks.

    Raises:
        UserError: `epochs` is 0 and an architecture would have random weights, or an ablation would train.
    """
    if suite.epochs:
        return
    for dataset, architecture in ((b.dataset, a) for b in suite.blocks for a in b.architectures):
        protocol = suite.protocol(dataset, architecture)
        # A function of the user's own may load its weights itself.
        if not (protocol.pretrained or protocol.weights or own_file.is_own(build.KIND, architecture)):
            raise UserError(
                f"epochs = 0 prunes trained networks, but '{architecture}' would have random weights: give --pretrained or --weights FILE"
            )
    if "reinit" in ablations:
        raise UserError("--ablate reinit trains new weights: it needs epochs of 1 or more")


def without_training(chosen: Iterable[Method], named: Iterable[str]) -> tuple[Method, ...]:
    """The methods that can prune a trained network without training it themselves.

    Args:
        chosen: the methods that were asked for.
        named: what was asked for, as the user wrote it; `all` leaves out those that cannot.

    Raises:
        UserError: a method was asked for by name, and needs a training of its own or prunes before or while it trains; or none is left.
    """
    by_name = {methods.get(name).name for name in named if name != "all"}
    left = []
    for method in chosen:
        reason = _reason(method)
        if not reason:
            left.append(method)
        elif method.name in by_name:
            raise UserError(f"'{method.name}' {reason}: it cannot prune a network with epochs = 0; use epochs of 1 or more")
    return tuple(left)


def _reason(method: Method) -> str:
    """Why a method cannot prune a given network; '' if it can."""
    if method.training != "map":
        return f"trains its networks by '{method.training}'"
    return {Stage.INIT: "prunes before training", Stage.DURING: "prunes during training"}.get(method.stage, "")
