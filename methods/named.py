"""The named methods beyond one per criterion: a table of values."""

from methods.interface import Stage
from methods.registry import Method, define

for _method in (
    Method("magnitude_layer", "magnitude", options={"scope": "layer"}),
    Method("magnitude_init", "magnitude", stage=Stage.INIT),
    Method("random_init", "random", stage=Stage.INIT),
    Method("spam", "opd", training="spam"),
):
    define(_method)
