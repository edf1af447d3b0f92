"""What docs/coming-from-celery.md says is the same has a test that shows it, and its share is counted."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.services import CHECKOUT

PAGE = (CHECKOUT / "docs" / "coming-from-celery.md").read_text("utf-8")
PAGES = ("calling", "canvas", "tasks", "signals")
"""Of Celery's user guide, those that are counted."""
LEAST = 0.8
"""The share that is the same; it may rise."""
Row = tuple[str, str, str]


def rows(page: str) -> list[Row]:
    """What Celery has, what it is here, and the test or the reason."""
    [table] = re.findall(rf"^\| {page} in Celery \| here \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in table.splitlines()]
    return [(what, here, why) for what, here, why in cells]


@cache
def functions_of(module: str) -> set[str]:
    tree = ast.parse((CHECKOUT / "tests" / module).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("page", [*PAGES, "classes", "routing"])
def test_what_is_the_same_names_a_test_that_there_is_and_what_is_not_says_why(page: str) -> None:
    for what, here, why in rows(page):
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", why)
        assert here in ("same", "different", "not there"), what
        assert bool(named) is (here == "same"), f"{what}: a row names a test if it is the same, and else says why"
        for module, test in named:
            assert test in functions_of(module), f"{what}: there is no {test} in {module}"
        assert named or len(why) > 5, f"{what}: say why"


def test_no_row_stands_twice() -> None:
    for page in PAGES:
        names = [what for what, _, _ in rows(page)]
        assert len(names) == len(set(names))


def test_most_of_what_the_guide_documents_is_the_same() -> None:
    all_rows = [row for page in PAGES for row in rows(page)]
    others = [f"{here}: {what}" for what, here, _ in all_rows if here != "same"]

    share = 1 - len(others) / len(all_rows)

    assert share >= LEAST, f"{share:.0%}, because of\n" + "\n".join(others)


def test_the_page_says_how_many() -> None:
    counted = {page: [here == "same" for _, here, _ in rows(page)] for page in PAGES}
    counted["all"] = [same for page in PAGES for same in counted[page]]

    said = dict(re.findall(r"^\| (\w+) \| (\d+ of \d+)\b", PAGE, re.MULTILINE))

    assert {page.lower(): count for page, count in said.items()} == {
        page: f"{sum(same)} of {len(same)}" for page, same in counted.items()
    }
    whole = counted["all"]
    assert f", {100 * sum(whole) // len(whole)} % |" in PAGE
