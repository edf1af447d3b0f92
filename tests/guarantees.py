"""Which tests of the conformance suite show which guarantee, by their marks, and the table of docs/guarantees.md.

A test says it with ``@pytest.mark.guarantee(4)``, a module that belongs to one with ``pytestmark``. Running this file
(``make guarantees``) writes the counts into the page.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.services import CHECKOUT

PAGE = CHECKOUT / "docs" / "guarantees.md"
SUITE = CHECKOUT / "tests" / "conformance"
NUMBERS = range(1, 17)
_ROW = re.compile(r"^(?P<before>\| (?P<number>\d+) \|.*\|)[^|]*\|$", re.MULTILINE)


def marks(module: Path) -> dict[str, frozenset[int]]:
    """The guarantees of each test function in `module`, also of those that have none."""
    tree = ast.parse(module.read_text("utf-8"))
    common = {
        number
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark"
        for number in _numbers(statement.value)
    }
    return {
        test.name: frozenset(common.union(*(_numbers(decorator) for decorator in test.decorator_list)))
        for test in tree.body
        if isinstance(test, (ast.FunctionDef, ast.AsyncFunctionDef)) and test.name.startswith("test_")
    }


def tests_by_guarantee() -> dict[int, dict[Path, int]]:
    """For each guarantee its test modules, and how many tests of it they have; one with parameters counts once."""
    found: dict[int, dict[Path, int]] = {number: {} for number in NUMBERS}
    for module in sorted(SUITE.glob("test_*.py")):
        for numbers in marks(module).values():
            for number in numbers:
                modules = found[number]
                modules[module] = modules.get(module, 0) + 1
    return found


def shown_by(modules: Mapping[Path, int]) -> str:
    """What the page says of a guarantee's tests."""
    links = [
        f"[{module.stem.removeprefix('test_').replace('_', ' ')}](../tests/conformance/{module.name})"
        for module in modules
    ]
    return f"{sum(modules.values())}: {', '.join(links)}" if links else "none yet"


def refreshed(page: str) -> str:
    """The page with the present counts."""
    found = tests_by_guarantee()
    return _ROW.sub(lambda row: f"{row['before']} {shown_by(found[int(row['number'])])} |", page)


def _numbers(marks_: ast.expr) -> Iterator[int]:
    """The numbers of all ``pytest.mark.guarantee(...)`` in an expression."""
    for node in ast.walk(marks_):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.guarantee":
            yield from (ast.literal_eval(argument) for argument in node.args)


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text("utf-8")), "utf-8")
