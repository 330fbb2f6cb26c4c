"""Compute ahead of use, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def computed(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """The results of a function for each item, in the order of the items.

    An exception of the function is raised where its result is due. The threads end with the iteration, also if it is abandoned.

    Args:
        function: called in another thread, for several items at a time.
        items: its arguments.
        threads: number of threads.
        ahead: the most results that are computed, or being computed, before they are asked for.

    Yields:
        The results.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
