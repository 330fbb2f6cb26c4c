"""Errors that a user can correct."""

from collections.abc import Iterable


class UserError(Exception):
    """What a user can put right: one line that names the value, what is allowed and the nearest match. Exit code 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """' (did you mean 'X'?)' where an option is close to the name, else ''."""
    import methods  # late: suites and rows are read without torch, which only an error has to wait for

    return methods.nearest(name, options)


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among the options."""
    options = list(options)
    return UserError(f"unknown {kind} '{name}'{nearest(name, options)}; available: {', '.join(options)}")
