"""Errors that a user can correct."""

from collections.abc import Iterable


class UserError(Exception):
    """An error in the user's input. The message is one line with the value, the allowed values and the nearest match. Exit code 2.

    Args:
        message: the message. Line breaks become spaces, and other control characters, which a terminal would act on, question marks.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in " ".join(str(message).split())))


def nearest(name: str, options: Iterable[str]) -> str:
    """A suggestion for a wrong name.

    Args:
        name: the wrong name.
        options: the valid names.

    Returns:
        " (did you mean 'X'?)", or "" if no option is similar.
    """
    import methods  # late, because it imports torch: suites and rows are read without it

    return methods.nearest(name, options)


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a wrong name.

    Args:
        kind: what the name should be, e.g. "suite".
        name: the wrong name.
        options: the valid names.
    """
    options = list(options)
    return UserError(f"unknown {kind} '{name}'{nearest(name, options)}; available: {', '.join(options)}")
