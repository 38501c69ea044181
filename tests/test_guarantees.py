"""What a docstring promises names its tests; every test that is named exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "privimage").rglob("*.py"))
NAMED = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(path):
    """Every docstring of a file with the name that it belongs to, white space made one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", path.stem), " ".join(text.split())


def _named_tests():
    return [
        pytest.param(file, function, id=f"{name}: {file}::{function}")
        for path in SOURCES
        for name, text in _docstrings(path)
        for file, function in NAMED.findall(text)
    ]


def _functions(path):
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "function"), _named_tests())
def test_a_test_that_is_named_exists(file, function):
    assert (ROOT / file).is_file()
    if function:
        assert function.startswith("test_")
        assert function in _functions(ROOT / file)
    else:
        assert any(name.startswith("test_") for name in _functions(ROOT / file))


def test_every_formal_guarantee_names_a_test():
    guarantees = [
        (f"{path.name}: {name}", text.split("Formal guarantee", 1)[1])
        for path in SOURCES
        for name, text in _docstrings(path)
        if "Formal guarantee" in text
    ]
    assert len(guarantees) > 5
    assert [name for name, text in guarantees if not NAMED.search(text)] == []


def test_whoever_takes_sensitive_images_guarantees_something():
    found = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = {ast.unparse(argument) for argument in node.args.args}
                if "sensitive: ImageSet" in arguments:
                    found[node.name] = ast.get_docstring(node) or ""
    assert {"noisy_histogram", "finetune"} <= found.keys()
    assert [name for name, text in found.items() if "Formal guarantee" not in text] == []
