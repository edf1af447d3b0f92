"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tools.layers import module_name

CHECKOUT = Path(__file__).parent.parent.parent
WITH_EXAMPLES = sorted(
    module_name(path, CHECKOUT)
    for folder in ("pulsartasks", "apps", "benchmarks", "cdk/babblebox", "tools")
    for path in (CHECKOUT / folder).rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)

    assert results.attempted > 0
    assert results.failed == 0
