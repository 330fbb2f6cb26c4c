"""What a method on a page links to: its papers (references.toml) and its pages in the documentation."""

import tomllib
from functools import cache
from importlib import resources

import methods
from bench.publishing.page.cells import Link

DOCS = "../../"  # the documentation, seen from a leaderboard's folder on the published site


@cache
def table() -> dict[str, dict[str, dict[str, str]]]:
    """Kind -> name -> `cite` and `url` of its paper."""
    file = resources.files("bench.publishing.page") / "references.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def papers(method: str, criterion: str, training: str) -> list[Link]:
    """The papers of a method; none if it has no entry, like methods of plug-ins.

    Args:
        method: its name, e.g. "magnitude@spam".
        criterion: the name of its criterion.
        training: the name of its training.
    """
    base = method.partition("(")[0].partition("@")[0]
    named = table()["methods"].get(base)
    found = [named or table()["criteria"].get(criterion), table()["trainings"].get(training)]
    return list(dict.fromkeys(Link(entry["cite"], entry["url"]) for entry in found if entry))


def docs(method: str, criterion: str, training: str) -> list[Link]:
    """The pages of a method, its criterion and its training in the documentation, which has pages of this package's entries only."""
    parts = [("criteria", "criterion", criterion), ("trainings", "training", training)]
    own = [(kind, word, name) for kind, word, name in parts if _is_own(kind, name)]
    links = [Link(f"{word} {name}", f"{DOCS}{kind}/{name}.html") for kind, word, name in own]
    if len(own) == len(parts) and method in methods.names():
        links.insert(0, Link(f"method {method}", f"{DOCS}methods/{method}.html"))
    return links


def _is_own(kind: str, name: str) -> bool:
    """Whether an entry is one of this package, not of a plug-in."""
    return name in methods.names(kind) and methods.lookup(kind, name).__module__.startswith("methods.")
