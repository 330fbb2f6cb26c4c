"""Papers and documentation that methods link to: every entry belongs to a name, and agrees with its docstring."""

import re
from types import ModuleType
from urllib.parse import urlsplit

import pytest

import methods
from bench.publishing.page import references
from bench.publishing.page.cells import Link
from tests.test_docs import hooks  # noqa: F401 (a fixture)

ENTRIES = [(kind, name) for kind, entries in references.table().items() for name in entries]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_an_entry_is_a_name_and_its_paper_is_that_of_the_docstring(kind: str, name: str) -> None:
    entry = references.table()[kind][name]
    assert entry.keys() == {"cite", "url"}
    assert re.fullmatch(r"[A-Za-z. ]+ (19|20)\d\d", entry["cite"])
    assert urlsplit(entry["url"]).scheme == "https"
    assert name in methods.names(kind)
    if kind != "methods":  # named methods are values in a table, without docstrings
        surname = entry["cite"].split()[0]
        assert surname in str(methods.lookup(kind, name).__doc__)
        assert entry["cite"][-4:] in str(methods.lookup(kind, name).__doc__)


def test_each_part_of_a_method_has_its_paper_once() -> None:
    han, dhahri = (
        Link("Han et al. 2015", "https://arxiv.org/abs/1506.02626"),
        Link("Dhahri et al. 2024", "https://arxiv.org/abs/2402.15978"),
    )
    assert references.papers("magnitude@spam(prior=unit)", "magnitude", "spam") == [han, dhahri]
    assert references.papers("spam", "opd", "spam") == [dhahri]
    assert [link.text for link in references.papers("magnitude_lamp@spam", "magnitude", "spam")] == ["Lee et al. 2021", dhahri.text]
    assert references.papers("mine", "mine", "map") == []


def test_pages_of_the_documentation_exist(hooks: ModuleType) -> None:  # noqa: F811
    pages = hooks.pages()
    for name in methods.names():
        method = methods.get(name)
        links = references.docs(name, method.criterion, method.training)
        assert len(links) == 3
        for link in links:
            assert link.url.removeprefix(references.DOCS).replace(".html", ".md") in pages


def test_a_plug_in_has_no_page(clean_registry: None) -> None:
    class Mine(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
        pass

    Mine.__module__ = "my_plug_in"
    methods.register("mine")(Mine)
    assert references.docs("mine", "mine", "map") == [Link("training map", "../../trainings/map.html")]
    assert references.docs("unknown", "unknown", "unknown") == []
