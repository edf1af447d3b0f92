"""The page of guarantees has a row for each, and counts the tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guarantees import NUMBERS, PAGE, SUITE, marks, refreshed


@pytest.mark.parametrize("module", sorted(SUITE.glob("test_*.py")), ids=lambda path: path.stem)
def test_every_conformance_module_says_which_guarantee_it_shows(module: Path) -> None:
    numbers = frozenset().union(*marks(module).values())

    assert numbers, f"mark {module.name} or tests of it with @pytest.mark.guarantee(N): see docs/guarantees.md"
    assert numbers <= set(NUMBERS)


def test_every_guarantee_has_a_row_and_a_section() -> None:
    page = PAGE.read_text("utf-8")

    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(NUMBERS)
    assert [int(number) for number in re.findall(r"^## (\d+)\. ", page, re.MULTILINE)] == list(NUMBERS)


def test_page_counts_the_tests_that_there_are() -> None:
    page = PAGE.read_text("utf-8")

    assert page == refreshed(page), "the counts are old: `make guarantees` writes them"
