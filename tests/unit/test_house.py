"""The structure of the package: no import cycles, folders with few modules, and a docstring for each."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parents[2] / "rrm_lm"
FOLDERS = sorted(file.parent for file in PACKAGE.rglob("__init__.py"))


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or indirectly (Tarjan's strongly connected components)."""
    found: list[set[str]] = []
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in imports[module]:
            if other not in index:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == index[module]:
            place = stack.index(module)
            if len(stack) - place > 1:
                found.append(set(stack[place:]))
            del stack[place:]

    for module in imports:
        if module not in index:
            visit(module)
    return found


def test_no_two_modules_import_each_other() -> None:
    """Imports inside functions and for types are included."""
    graph = grimp.build_graph("rrm_lm", exclude_type_checking_imports=False)
    # `rrm_lm` itself is imported for its version.
    imports = {m: graph.find_modules_directly_imported_by(m) - {"rrm_lm"} for m in graph.modules if m != "rrm_lm"}
    assert circles(imports) == []
    assert len(imports) > 200


def test_import_cycle_is_detected() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


@pytest.mark.parametrize("folder", FOLDERS, ids=[str(folder.relative_to(PACKAGE.parent)) for folder in FOLDERS])
def test_folders_have_few_modules(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 16
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert doc and len(doc) > 40
