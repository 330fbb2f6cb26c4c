"""Errors that a user can correct."""

from collections.abc import Iterable

LONGEST = 2000  # characters of the column `error`: the csv module reads no cell of more than 131072


def printable(text: str) -> str:
    """A text on one line: line breaks become spaces, and other control characters, which a terminal would act on, question marks."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def shortened(text: str) -> str:
    """A text for the column `error`: one line of at most `LONGEST` characters. The message of an exception may be of any length."""
    line = printable(text[: 10 * LONGEST])
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def described(error: BaseException) -> str:
    """The type and the message of an exception, for the column `error`."""
    try:
        text = str(error)
    except Exception:  # of the method's own class
        text = "its message cannot be shown"
    return shortened(f"{type(error).__name__}: {text}").removesuffix(":")


class UserError(Exception):
    """An error in the user's input. The message is one line with the value, the allowed values and the nearest match. Exit code 2.

    Args:
        message: the message; what is not printable in it is replaced.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(str(message)))


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
