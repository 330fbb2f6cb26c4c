"""Texts of the reference that follow from declarations: options, columns, suite keys. `GENERATED[NAME]` makes the text of a marker."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.publishing.datapackage import SCHEMAS
from bench.spec.protocol import Block, Settings
from bench.spec.suite import Suite, load_suite, suites

ROOT = Path(__file__).resolve().parent.parent


def table(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table; line breaks and bars in its cells are escaped."""
    rows = [list(headings)]
    rows += [["---"] * len(rows[0]), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def escaped(text: str) -> str:
    """Text as Markdown that shows it letter by letter, but for code in backticks."""
    parts = text.split("`")
    return "`".join(part if k % 2 else re.sub(r"([*_<\[\\])", r"\\\1", part) for k, part in enumerate(parts))


def command_line() -> str:
    """Every command with its arguments and options, from the program itself."""
    import typer.main

    from bench.cli.main import app

    return "\n".join(_commands(typer.main.get_command(app), "python -m bench"))


def _commands(group: Any, path: str) -> Iterable[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> str:
    context = command.context_class(command, info_name=path)
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [_parameter(p) for p in command.params if not getattr(p, "hidden", False)]
    about = escaped(" ".join((command.help or "").split()))
    return f"## `{path}`\n\n{about}\n\n```text\n{usage}\n```\n\n{table(('argument or option', 'default', 'meaning'), lines)}"


def _parameter(parameter: Any) -> tuple[str, str, str]:
    option = parameter.opts[0].startswith("-")
    name = ", ".join(parameter.opts) if option else parameter.metavar or parameter.name.upper()
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if parameter.required:
        default = "required"
    elif shown in (None, "", (), False) or callable(shown):
        default = ""
    else:
        default = shown if isinstance(parameter.show_default, str) else f"`{shown}`"
    return f"`{name}`", default, escaped(parameter.help or "")


def columns(schema: str) -> str:
    """The columns of one published CSV."""
    fields = SCHEMAS[schema]["fields"]
    return table(
        ("column", "type", "unit", "meaning", "allowed"),
        ((f"`{f['name']}`", f["type"], f.get("unit", ""), f["description"], constraints(f.get("constraints", {}))) for f in fields),
    )


def constraints(declared: Mapping[str, Any]) -> str:
    """The values that a column may have, in words."""
    low, high = declared.get("minimum"), declared.get("maximum")
    said = [
        f"{low} to {high}" if high is not None and low is not None else f"at least {low}" if low is not None else "",
        "one of " + ", ".join(f"`{value}`" for value in declared["enum"]) if "enum" in declared else "",
        "never empty" if declared.get("required") else "",
    ]
    return "; ".join(filter(None, said))


def suite_keys() -> str:
    """The keys of a suite file, of its blocks and of its settings for one architecture."""
    titles = {
        "Keys of the file": Suite,
        "Keys of each entry of `blocks`: data set, architectures, and values for them instead of the file's": Block,
        "Keys of `[architecture.NAME]`, which replace those of the file for one architecture": Settings,
    }
    return "\n".join(f"## {title}\n\n{_keys(model.model_json_schema())}" for title, model in titles.items())


def _percent(sparsities: Iterable[float]) -> str:
    return ", ".join(f"{100 * s:g} %" for s in sparsities)


def shipped_suites() -> str:
    """The suites of the package, each with its size."""
    lines = []
    for name, suite in ((name, load_suite(name)) for name in suites()):
        blocks = "; ".join(f"{block.dataset}: {', '.join(block.architectures)}" for block in suite.blocks)
        sparsities = _percent(suite.sparsities)
        if suite.early_sparsities is not None:
            sparsities += f"; before and while training {_percent(suite.early_sparsities)}"
        lines.append(
            (f"`{name}`", escaped(suite.description), escaped(blocks), sparsities, str(len(suite.seeds)), suite.trials_said or "0")
        )
    return table(("name", "what it compares", "data sets and architectures", "sparsities", "seeds", "trials"), lines)


def _keys(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    lines = []
    for name, field in schema["properties"].items():
        default = "required" if name in required else f"`{toml(field['default'])}`" if field.get("default") is not None else ""
        lines.append((f"`{name}`", kind(field), default, field.get("description", "")))
    return table(("key", "type", "default", "meaning"), lines)


def kind(field: Mapping[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if "anyOf" in field:
        return next(kind(option) for option in field["anyOf"] if option.get("type") != "null")
    if "$ref" in field:
        return "table"
    if field.get("type") == "array":
        return f"list: {kind(field['items'])}"
    if field.get("type") == "object":
        return "tables by name"
    words = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}[field["type"]]
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {field[name]:g}" for name, sign in limits.items() if name in field]
    choices = re.fullmatch(r"\^\(([a-z|]+)\)\$", field.get("pattern", ""))
    said += [" or ".join(choices[1].replace("|", ", ").rsplit(", ", 1))] if choices else []
    return f"{words}, {', '.join(said)}" if said else words


def toml(value: Any) -> str:
    """A default as a suite file writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def first_board() -> str:
    """The first table of the leaderboard in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- leaderboard -->\n")[2]
    return "\n\n".join(text.split("\n\n")[:2]) + "\n"


def included(name: str) -> str:
    """A file of the repository without its title, its links as they are seen from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]
    return text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")


GENERATED: dict[str, Callable[[], str]] = {
    "command_line": command_line,
    "results_columns": lambda: columns("results"),
    "leaderboard_columns": lambda: columns("leaderboard"),
    "tuned_columns": lambda: columns("tuned"),
    "contributions_columns": lambda: columns("contributions"),
    "blocks_columns": lambda: columns("blocks"),
    "verified_columns": lambda: columns("verified"),
    "first_board": first_board,
    "suite_keys": suite_keys,
    "suites": shipped_suites,
    "changelog": lambda: included("CHANGELOG.md"),
    "contributing": lambda: included("CONTRIBUTING.md"),
}
