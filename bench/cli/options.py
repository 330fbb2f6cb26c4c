"""Options of the commands. Those that several commands share are the fields of two dataclasses, `Narrowing` and `Resources`."""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

Kind = type[str] | type[int] | type[float]
LISTED: dict[Any, Kind] = {tuple[str, ...]: str, tuple[float, ...]: float, tuple[int, ...]: int}
METAVARS: dict[Kind, str] = {str: "NAME,...", int: "INTEGER,...", float: "NUMBER,..."}

# Python also reads 1_0, digits of other scripts, nan and inf.
NUMBERS = {int: re.compile(r"[+-]?[0-9]{1,100}"), float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")}


def shared(*groups: tuple[str, type, tuple[str, ...]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the command gets an option for each field of a dataclass, and is called with the dataclass.

    Args:
        groups: (parameter of the command, dataclass, names of the fields that the command takes; all if empty).
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        taken = {name for name, _, _ in groups}
        own = [p for p in inspect.signature(command).parameters.values() if p.name not in taken]
        options = {name: _options(cls, fields) for name, cls, fields in groups}

        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            made = {name: cls(**_values(cls, {o.name: given.pop(o.name) for o in options[name]})) for name, cls, _ in groups}
            return command(**given, **made)

        # Arguments first, then the suite and what narrows it, then the command's own options, then machines and folders.
        first, *others = [options[name] for name, _, _ in groups]
        arguments = [p for p in own if p.default is inspect.Parameter.empty]
        begin = [p for p in own if p.name == "suite" and p not in arguments]
        parameters = [*arguments, *begin, *first, *(p for p in own if p not in [*arguments, *begin]), *(o for part in others for o in part)]
        wrapped.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _options(cls: type, names: tuple[str, ...]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if not names or field.name in names]
    return [_option(field, hints[field.name]) for field in fields]


def _option(field: "dataclasses.Field[Any]", hint: Any) -> inspect.Parameter:
    flag = f"--{field.name.replace('_', '-')}"
    about: dict[str, Any] = {"help": field.metadata["help"], "show_default": field.metadata["default"] or field.default not in (None, ())}
    listed = _listed(field, hint)
    if field.default == ():  # repeatable
        annotation, default = Annotated[list[str] | None, typer.Option(flag, metavar="FILE", **about)], None
    elif listed is not None:
        annotation, default = Annotated[str | None, typer.Option(flag, metavar=METAVARS[listed], **about)], None
    else:
        annotation, default = Annotated[hint, typer.Option(flag, **about)], field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _listed(field: "dataclasses.Field[Any]", hint: Any) -> Kind | None:
    """The type of the values of a comma-separated list; None for another option."""
    return None if field.default == () else next((LISTED[part] for part in typing.get_args(hint) if part in LISTED), None)


def _values(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """The typed values of a dataclass's options."""
    hints, values = typing.get_type_hints(cls), dict(given)
    for field in dataclasses.fields(cls):
        if field.name in given:
            listed, text = _listed(field, hints[field.name]), given[field.name]
            if field.default == ():
                values[field.name] = tuple(text or ())
            elif listed is not None and text is not None:
                flag = f"--{field.name.replace('_', '-')}"
                values[field.name] = _some_names(flag, text) if listed is str else numbers(flag, text, listed)
    return values


def names(text: str | None) -> tuple[str, ...]:
    """What stands between the commas; those in brackets divide options and stay."""
    return tuple(part.strip() for part in re.split(r",(?![^()]*\))", text or "") if part.strip())


def _some_names(option: str, text: str) -> tuple[str, ...]:
    """A list of names with commas between. Raises UserError if it is empty."""
    from bench.spec.errors import UserError

    found = names(text)
    if not found:
        raise UserError(f"{option}: no value in '{text}'")
    return found


def numbers(option: str, text: str, kind: Kind) -> tuple[Any, ...]:
    """A list of numbers with commas between. Raises UserError naming one that is none."""
    from bench.spec.errors import UserError

    values = []
    for part in names(text):
        if not NUMBERS[kind].fullmatch(part):
            raise UserError(f"{option}: '{part[:40]}' is not {'a whole number' if kind is int else 'a number'}")
        values.append(kind(part))
    if not values:
        raise UserError(f"{option}: no value in '{text}'")
    return tuple(values)


def command_line(suite: str, *groups: Any) -> list[str]:
    """The options that say the same again, for commands in messages: those that are not at their defaults.

    The URL of the store is without its password: one that is in `PGPASSWORD` or `~/.pgpass` is found again.
    """
    parts = ["--suite", suite]
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if value == field.default:
                continue
            if field.name == "store":
                from bench.storage.database import shown

                value = shown(value)
            flag = f"--{field.name.replace('_', '-')}"
            if isinstance(value, bool):
                parts.append(flag if value else f"--no-{flag[2:]}")
            elif field.default == ():
                parts += [part for file in value for part in (flag, file)]
            else:
                parts += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return parts


Suite = Annotated[str, typer.Option(help="A suite by name, or a .toml file.")]
