"""Which registered criteria and methods a test applies to."""

import methods


def alone(granularity: str = "weight") -> list[str]:
    """The criteria that prune at a granularity without a schedule of their own."""
    return [name for name in methods.names("criteria") if methods.get(name).schedule is None and fits(name, granularity)]


def fits(method: str, granularity: str = "weight") -> bool:
    """Whether the criterion of a method is defined for a granularity."""
    return methods.get(method).make_criterion().refusal(methods.get_granularity(granularity)) is None
