"""Suites with values of a test's own."""

import dataclasses
from typing import Any

from bench.planning import request
from bench.spec.choices import Narrowing
from bench.spec.suite import Suite

FIELDS = {field.name for field in dataclasses.fields(Narrowing)} - {"methods"}


def narrowed(suite: Suite, **changes: Any) -> Suite:
    """The suite with what a user may narrow, and with any other key by name."""
    own = {name: value for name, value in changes.items() if name not in FIELDS}
    made = Suite.model_validate(suite.model_dump() | own)
    return request.narrowed(made, Narrowing(**{name: value for name, value in changes.items() if name in FIELDS}))
