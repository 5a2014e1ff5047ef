"""The structure of the package: no import cycles, folders with few modules, a docstring for each, no code twice."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parents[2] / "rrm_lm"
SAME = 8  # lines in a row that two places may not share
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


def logic(source: str) -> list[tuple[int, str]]:
    """The numbered lines of a module without comments, docstrings, imports and lone brackets."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (text or isinstance(node, ast.Import | ast.ImportFrom)):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(source.splitlines(), start=1))
    return [(n, line) for n, line in lines if n not in skipped and re.search(r"\w", line) and not line.startswith("#")]


def duplicates(sources: dict[str, str]) -> list[str]:
    """Pairs of places that share lines of logic."""
    places: dict[tuple[str, ...], str] = {}
    found = []
    for name, source in sources.items():
        lines = logic(source)
        for start in range(len(lines) - SAME + 1):
            here = f"{name}:{lines[start][0]}"
            first = places.setdefault(tuple(line for _, line in lines[start : start + SAME]), here)
            if first != here:
                found.append(f"{first} ~ {here}")
    return found


def test_no_logic_is_written_twice() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert duplicates({str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8") for file in files}) == []


def test_a_duplicate_is_found() -> None:
    body = "".join(f"    x += {number}\n" for number in range(SAME - 1))
    one = f'def f(x):\n    """Text."""\n{body}    return x\n'
    other = f"import os\n\n\ndef g(x):\n    # a comment\n{body}\n    return x\n"
    assert duplicates({"one": one, "other": other}) == ["one:3 ~ other:6"]
    assert duplicates({"one": one, "other": other.replace("x += 3", "x += 30")}) == []
