"""The named methods beyond one per criterion: a table of values."""

from methods.core.interface import Stage
from methods.core.schedule import Gradual, Iterative, Rewinding
from methods.registry.registry import SCHEDULES, Method, define

# Gradual pruning (Zhu and Gupta 2017, "To prune, or not to prune"): it begins when the network has learned, and ends early
# enough for the pruned network to train on.
GRADUAL = Gradual(shape="cubic", start=0.0, begin=1 / 3, end=3 / 4, every=1, persistent=True)

# Online pruning as SpaM's code releases it: a line from sparsity 0.1, with dynamic masks, to the last epoch. Departures: the
# last cut is at the target exactly, and its mask is final; a cut after every second epoch stands for one in ten of a hundred;
# the burn-in is a third of the training. As there, the scores take the curvature of the last update of the prior.
RELEASED = Gradual(shape="linear", start=0.1, begin=1 / 3, end=1.0, every=2, persistent=False)


def _spam(**options: str) -> Method:
    """A variant of `spam`, named after the options that differ from it. It is costly: it shares no trained network with others."""
    name = "_".join(["spam", *("kfac" if o == "kronecker" else o for o in options.values())])
    return Method(name, "opd", training="spam", training_options=options, costly=True)


for _method in (
    Method("magnitude_layer", "magnitude", options={"scope": "layer"}),
    Method("magnitude_init", "magnitude", stage=Stage.INIT),
    Method("random_init", "random", stage=Stage.INIT),
    Method("snip_iterative", "snip", stage=Stage.INIT, options={"n_rounds": 100}, costly=True),
    Method("spam", "opd", training="spam"),
    Method("dwf", "magnitude", training="dwf"),
    *(_spam(prior=prior) for prior in ("unit", "layer", "scalar")),
    _spam(structure="kronecker"),
    *(_spam(structure="kronecker", prior=prior) for prior in ("unit", "layer", "scalar")),
    Method("magnitude_iterative", "magnitude", schedule=Iterative(), costly=True),
    Method("imp", "magnitude", stage=Stage.DURING, schedule=Rewinding(), costly=True),
    Method("magnitude_gradual", "magnitude", stage=Stage.DURING, schedule=GRADUAL, costly=True),
    Method("spam_gradual", "opd", training="spam", stage=Stage.DURING, schedule=GRADUAL, costly=True),
    Method("spam_online", "opd", training="spam", stage=Stage.DURING, schedule=RELEASED, costly=True),
):
    define(_method)

SCHEDULES.update(iterative=Iterative(), gradual=GRADUAL, online=RELEASED, rewinding=Rewinding())
