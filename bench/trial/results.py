"""The results of a job, one for each point, and the rule which points fail with an exception."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bench.spec.errors import described
from bench.trial.job import Point
from bench.trial.network import Measurement, Network


class Result(NamedTuple):
    """A point, its measurement, and the measured network; None if there is no network because the method failed or is not supported."""

    point: Point
    measurement: Measurement
    network: Network | None = None


Results = Iterator[Result]


def isolated(points: Iterable[Point], work: Callable[[], Results]) -> Results:
    """The results of `work`. An exception becomes a failure of those points that have no result yet; it is not raised.

    Args:
        points: the points that `work` measures.
        work: yields one result for each point, in any order.

    Returns:
        The results as they come. A failed point has the columns `status` ("failed") and `error` only.
    """
    left = dict.fromkeys(points)
    try:
        for result in work():
            left.pop(result.point, None)
            yield result
    except (Exception, SystemExit) as error:  # a user's method may raise anything; the other points go on
        yield from (Result(point, {"status": "failed", "error": described(error)}) for point in left)
