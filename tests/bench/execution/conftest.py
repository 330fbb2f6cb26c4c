"""Two workers of this machine."""

from collections.abc import Iterator

import pytest

from bench.execution.local import Local


@pytest.fixture
def pool() -> Iterator[Local]:
    made = Local(2)
    yield made
    made.close()
