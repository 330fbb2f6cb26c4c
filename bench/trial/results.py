"""The results of a job, one for each point, and the rule which points fail with an exception."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bench.trial.job import Point
from bench.trial.network import Measurement, Network

LONGEST = 2000  # characters of the column `error`


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
    except Exception as error:  # a user's method may raise anything; the other points go on
        yield from (Result(point, {"status": "failed", "error": one_line(error)}) for point in left)


def one_line(error: Exception) -> str:
    """The type and the message of an exception on one line, shortened."""
    return shortened(f"{type(error).__name__}: {error}")


def shortened(text: str) -> str:
    """A text for the column `error`: one line of at most `LONGEST` characters, without control characters.

    The message of an error may be of any length, and the csv module reads no cell of more than 131072 characters.
    """
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 10 * LONGEST].split()))
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
