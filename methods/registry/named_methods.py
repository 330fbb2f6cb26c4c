"""Named methods other than the one that every criterion has: a table of values."""

from methods.core.interface import Stage
from methods.core.schedule import Gradual, Iterative, Rewinding
from methods.registry.registry import SCHEDULES, Method, define

# Gradual pruning (Zhu and Gupta 2017, "To prune, or not to prune"). It starts when the network has learned something, and ends early
# enough for the pruned network to be trained further.
GRADUAL = Gradual(shape="cubic", start=0.0, begin=1 / 3, end=3 / 4, every=1, persistent=True)

# Online pruning as in the released code of SpaM: sparsity rises linearly from 0.1 to the last epoch, with dynamic masks; the scores use
# the curvature of the last update of the prior. Departures: the last cut reaches the target exactly and its mask is final; there is a
# cut after every second epoch, not after every tenth of a hundred; the burn-in is a third of the training.
RELEASED = Gradual(shape="linear", start=0.1, begin=1 / 3, end=1.0, every=2, persistent=False)


# Learning-rate rewinding (Renda et al. 2020, "Comparing rewinding and fine-tuning in neural network pruning").
LR_REWINDING = Rewinding(rate=0.2, to=0.0, weights=False)


def _spam(**options: str) -> Method:
    """A variant of `spam`, named after the options that differ from it. It is costly: it shares no trained network with others."""
    name = "_".join(["spam", *("kfac" if o == "kronecker" else o for o in options.values())])
    return Method(name, "opd", training="spam", training_options=options, costly=True)


for _method in (
    *(Method(f"magnitude_{scope}", "magnitude", options={"scope": scope}) for scope in ("layer", "erk", "lamp")),
    Method("magnitude_init", "magnitude", stage=Stage.INIT),
    Method("random_init", "random", stage=Stage.INIT),
    Method("random_init_erk", "random", stage=Stage.INIT, options={"scope": "erk"}, costly=True),
    Method("snip_iterative", "snip", stage=Stage.INIT, options={"n_rounds": 100}, costly=True),
    Method("spam", "opd", training="spam"),
    Method("dwf", "magnitude", training="dwf"),
    Method("str", "magnitude", training="str", costly=True),
    Method("l0", "magnitude", training="l0", costly=True),
    Method("slimming", "bn_scale", training="slimming"),
    Method("group_lasso", "filter_norm", training="group_lasso", options={"norm": 2}),
    *(_spam(prior=prior) for prior in ("unit", "layer", "scalar")),
    _spam(structure="kronecker"),
    *(_spam(structure="kronecker", prior=prior) for prior in ("unit", "layer", "scalar")),
    Method("magnitude_iterative", "magnitude", schedule=Iterative(), costly=True),
    Method("imp", "magnitude", stage=Stage.DURING, schedule=Rewinding(), costly=True),
    Method("magnitude_lr_rewinding", "magnitude", stage=Stage.DURING, schedule=LR_REWINDING, costly=True),
    Method("magnitude_gradual", "magnitude", stage=Stage.DURING, schedule=GRADUAL, costly=True),
    Method("spam_gradual", "opd", training="spam", stage=Stage.DURING, schedule=GRADUAL, costly=True),
    Method("spam_online", "opd", training="spam", stage=Stage.DURING, schedule=RELEASED, costly=True),
):
    define(_method)

SCHEDULES.update(iterative=Iterative(), gradual=GRADUAL, online=RELEASED, rewinding=Rewinding(), lr_rewinding=LR_REWINDING)
