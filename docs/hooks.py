"""What the documentation takes from the code while it is built: pages of methods, options, columns and suite keys.

mkdocs calls `on_config`, `on_files`, `on_page_markdown` and `on_post_build`. No list here is kept by hand: a new method, option, column
or suite key is documented by its own declaration. `<!-- generated: NAME -->` in a page is replaced by the text of
`declared.GENERATED[NAME]`.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from declared import GENERATED, ROOT, escaped, table  # of this folder, which mkdocs makes importable while it loads its hooks

import methods

KINDS = {"criteria": "Criteria", "trainings": "Trainings", "granularities": "Granularities"}
STAGES = {"init": "at initialisation", "during": "while training", "after": "after training"}
MARKER = re.compile(r"<!-- generated: ([a-z_]+) -->")


def file_name(name: str) -> str:
    """The page of a registered name, without its folder: `2:4` -> `2-4.md`."""
    return name.replace(":", "-") + ".md"


# Pages of methods and of what they are made of.


def pages() -> dict[str, str]:
    """Every generated page: path below docs/ -> Markdown."""
    made = {"methods/index.md": method_index()}
    made |= {f"methods/{file_name(name)}": method_page(methods.get(name)) for name in methods.names()}
    for kind in KINDS:
        made[f"{kind}/index.md"] = kind_index(kind)
        made |= {f"{kind}/{file_name(name)}": entry_page(kind, methods.lookup(kind, name)) for name in methods.names(kind)}
    return made


def method_index() -> str:
    """All methods in one table."""
    lines = []
    for method in map(methods.get, methods.names()):
        named = "must be named" if method.costly else in_all(method)
        parts = link("criteria", method.criterion), link("trainings", method.training), STAGES[method.stage]
        lines.append([f"[`{method.name}`]({file_name(method.name)})", *parts, named])
    return (
        "# Methods\n\nA method is a criterion (which weights matter), a training (how the dense network is trained) and a stage (when the "
        "criterion is applied). You can combine any criterion with any training: `criterion@training`, e.g. `magnitude@spam`. Fixed "
        "hyperparameters stand in brackets: `magnitude(weight_decay=0.003)`. The last column says whether `--methods all` runs a method; "
        "methods that train networks of their own must be named.\n\n"
        + table(("method", "criterion", "training", "applied", "in `--methods all`"), lines)
    )


def in_all(method: methods.Method) -> str:
    """Where `--methods all` runs a method that need not be named."""
    only = method.make_criterion().granularities
    return f"with granularity {' or '.join(only)}" if only else "yes"


def method_page(method: methods.Method) -> str:
    """One method: its parts, its schedule, its hyperparameters."""
    facts = [
        ("criterion", link("criteria", method.criterion)),
        ("training", link("trainings", method.training)),
        ("applied", STAGES[method.stage]),
        ("fixed by the name", assigned({**method.options, **method.training_options}) or "nothing"),
        ("schedule", str(method.schedule) if method.schedule else "one cut" if method.stage != "during" else ""),
        ("granularity", " or ".join(method.make_criterion().granularities)),
        ("in `--methods all`", "no: name it, because it trains networks of its own or takes long" if method.costly else in_all(method)),
    ]
    criterion, training = method.make_criterion(), method.make_training()
    does = f"Criterion: {escaped(first_line(type(criterion)))}.\n\nTraining: {escaped(first_line(type(training)))}.\n"
    parts = [f"# Method `{method.name}`\n", does, table(("property", "value"), [fact for fact in facts if fact[1]])]
    if method.schedule:
        parts.append("Fields of the schedule: " + assigned(dataclasses.asdict(method.schedule)) + ".\n")
    for title, made, fixed in (
        ("criterion", criterion, method.options),
        ("training", training, method.training_options),
    ):
        shown = hyperparameters(made, fixed)
        parts.append(f"## Hyperparameters of the {title} `{made.name}`\n\n{shown or 'None.'}\n")
    only = method.make_criterion().granularities
    where = f" --granularity {only[0]}" if only else ""
    parts.append(f"## Run it\n\n```sh\npython -m bench run --methods {shell(method.name)}{where} --trials 0\n```\n")
    return "\n".join(parts)


def kind_index(kind: str) -> str:
    """All entries of one kind in a table."""
    lines = [(f"[`{name}`]({file_name(name)})", escaped(first_line(methods.lookup(kind, name)))) for name in methods.names(kind)]
    return f"# {KINDS[kind]}\n\n{table(('name', 'what it does'), lines)}"


def entry_page(kind: str, cls: type[methods.Configuration]) -> str:
    """One criterion, training or granularity: its docstring, its hyperparameters, what uses it."""
    title = {"criteria": "Criterion", "trainings": "Training", "granularities": "Granularity"}[kind]
    source = "/".join(cls.__module__.split(".")) + ".py"
    options = "show_root_heading: false\n      show_root_toc_entry: false\n      members: false\n      show_bases: false"
    parts = [
        f"# {title} `{cls.name}`\n",
        f"::: {cls.__module__}.{cls.__qualname__}\n    options:\n      {options}\n",
        f"## Hyperparameters\n\n{hyperparameters(cls, {}) or 'None.'}\n",
    ]
    if kind == "criteria":
        parts.append(criterion_facts(cls))
    users = [f"[`{m.name}`](../methods/{file_name(m.name)})" for m in map(methods.get, methods.names()) if uses(m, kind, cls.name)]
    if users:
        parts.append(f"## Methods that use it\n\n{', '.join(users)}\n")
    parts.append(f"Source: `{source}`.\n")
    return "\n".join(parts)


def uses(method: methods.Method, kind: str, name: str) -> bool:
    """Whether a method has this criterion, or this training."""
    return (kind, name) in (("criteria", method.criterion), ("trainings", method.training))


def criterion_facts(cls: Any) -> str:
    """What a criterion declares besides its hyperparameters."""
    facts = [
        ("may be applied", ", ".join(STAGES[stage] for stage in cls.stages)),
        ("defined for granularity", " or ".join(cls().granularities) or "all"),
        ("reads training data", "no" if cls.data_free else "yes"),
        ("scored once for all sparsities", "yes" if cls.nested else "no: its scores depend on the mask or on the sparsity"),
        ("adjusts the kept weights", "yes" if cls.compensate is not methods.Criterion.compensate else "no"),
    ]
    return f"## Properties\n\n{table(('', ''), facts)}"


def hyperparameters(configuration: Any, fixed: Mapping[str, Any]) -> str:
    """A table of declared hyperparameters; '' where there are none. `configuration`: a dataclass or an instance of one."""
    defaults = {f.name: getattr(configuration, f.name, f.default) for f in dataclasses.fields(configuration)}
    lines = []
    for name, allowed in methods.ranges(configuration).items():
        searched = "no"
        if name in fixed:
            searched = "no: fixed by the name"
        elif allowed.tuned:
            within = f", in [{allowed.searched.low:g}, {allowed.searched.high:g}]" if allowed.search else ""
            searched = "yes" + within + ", on a logarithmic scale" * allowed.log
        lines.append((f"`{name}`", allowed.meaning, f"`{defaults[name]}`", str(allowed), searched))
    return table(("name", "meaning", "default", "allowed", "tuned"), lines) if lines else ""


def link(kind: str, name: str) -> str:
    """A link to an entry's page, from a page of another folder."""
    return f"[`{name}`](../{kind}/{file_name(name)})"


def assigned(values: Mapping[str, Any]) -> str:
    """`name = value`, with commas."""
    return ", ".join(f"`{name} = {value}`" for name, value in values.items())


def shell(name: str) -> str:
    """A method's name as one word of a shell."""
    return f'"{name}"' if "(" in name else name


def first_line(cls: type) -> str:
    """The first sentence of a docstring."""
    text = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".:")


# What mkdocs calls.


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation, each kind under its own entry."""
    for kind in ("methods", *KINDS):
        names = methods.names() if kind == "methods" else methods.names(kind)
        own = [f"{kind}/index.md", *({name: f"{kind}/{file_name(name)}"} for name in names)]
        for section in config.nav:
            for entries in section.values():
                if isinstance(entries, list):
                    entries[:] = [{title: own} if path == f"{kind}/" else {title: path} for e in entries for title, path in e.items()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_build(config: Any) -> None:
    """Put the leaderboards next to the documentation: their pages link to it, and it links to them."""
    shutil.copytree(ROOT / "leaderboards", Path(config.site_dir) / "leaderboards", dirs_exist_ok=True)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page takes from the code."""
    return MARKER.sub(lambda found: GENERATED[found[1]](), markdown)
