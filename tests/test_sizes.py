"""Files and functions are short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["bench", "methods"]  # those whose sizes are checked
FILE, FUNCTION = 300, 40  # lines, at most


def long_functions(source: str) -> list[str]:
    """The functions of a file with more than FUNCTION lines, from `def` to the last statement.

    Decorators and docstrings are not counted, because a long formula or reference is not a reason to split a function.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = node.body[0]
            documented = isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant) and isinstance(words.value.value, str)
            docstring = (words.end_lineno or 0) - words.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > FUNCTION:
                found.append(f"{node.name}: {lines}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_and_no_function_is_too_long(package: str) -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / package).rglob("*.py"))}
    assert len(sources) > 10
    assert {str(path.relative_to(ROOT)): n for path, text in sources.items() if (n := len(text.splitlines())) > FILE} == {}
    assert {str(path.relative_to(ROOT)): found for path, text in sources.items() if (found := long_functions(text))} == {}


def test_a_long_function_is_found_and_a_long_docstring_is_not() -> None:
    def function(statements: int, docstring: str = "") -> str:
        return f"def f():\n{docstring}" + "    x = 1\n" * statements

    assert long_functions(function(FUNCTION - 1)) == []
    assert long_functions(function(FUNCTION)) == [f"f: {FUNCTION + 1}"]
    assert long_functions(function(FUNCTION - 1, '    """One.\n' + "\n" * 50 + '    """\n')) == []
    assert long_functions("class A:\n" + "".join(f"    {line}\n" for line in function(FUNCTION).splitlines())) == [f"f: {FUNCTION + 1}"]
