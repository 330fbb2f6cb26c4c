"""What the commands share: options that several have, and how their values are read. One clear line for what cannot be."""

from typing import Annotated, Any

import typer

DEVICES = ("auto", "cpu", "cuda")
Plugins = Annotated[list[str] | None, typer.Option("--plugin", metavar="FILE", help="A Python file that registers methods; repeatable.")]
Granularity = Annotated[
    str | None, typer.Option(help="What is removed: weight, channel, 2:4 or any n:m.", show_default="the suite's, mostly weight")
]
Match = Annotated[
    str | None,
    typer.Option(
        help="What sparsities are shares of: weights, or for channels parameters, flops or latency.",
        show_default="the suite's, mostly weights",
    ),
]


def check_device(device: str) -> None:
    """UserError where there is no such kind of device."""
    from bench.spec.errors import unknown

    if device not in DEVICES:
        raise unknown("device", device, DEVICES)


def names(text: str | None) -> list[str]:
    """What stands between the commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[Any] | None:
    """A list of numbers with commas between; UserError naming the one that is none."""
    from bench.spec.errors import UserError

    if text is None:
        return None
    values = []
    for part in names(text):
        try:
            values.append(kind(part))
        except ValueError:
            raise UserError(f"{option}: '{part}' is not {'a whole number' if kind is int else 'a number'}") from None
    if not values:
        raise UserError(f"{option}: no value in '{text}'")
    return values
