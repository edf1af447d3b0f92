"""docs/settings.md names every setting that the code reads, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from pulsartasks.brokers.pulsar.settings import PulsarSettings

CHECKOUT = Path(__file__).parent.parent.parent
NAME = re.compile(r"[A-Z][A-Z0-9_]{3,}")
OF_THE_SYSTEM = {"PATH"}


def test_every_setting_is_documented_and_every_documented_one_is_read() -> None:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|", (CHECKOUT / "docs" / "settings.md").read_text("utf-8"), re.MULTILINE)

    assert len(rows) == len(set(rows))
    assert set(rows) == _settings_read() | _settings_of_the_pulsar_url()


def _settings_read() -> set[str]:
    paths = [path for folder in ("pulsartasks", "apps", "tools") for path in (CHECKOUT / folder).rglob("*.py")]
    return {name for path in paths for name in _names_read(ast.parse(path.read_text("utf-8")))} - OF_THE_SYSTEM


def _settings_of_the_pulsar_url() -> set[str]:
    """Read in a loop over the fields, so no text in the code names them."""
    return {f"PULSARTASKS_{field.name.upper()}" for field in fields(PulsarSettings) if field.name != "service_url"}


def _names_read(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = [node.func, *node.args]
            if any("environ" in ast.unparse(word) or "getenv" in ast.unparse(word) for word in words):
                yield from _names(node.args[:2])
            yield from _names([keyword.value for keyword in node.keywords if keyword.arg == "envvar"])
        elif (
            isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and "environ" in ast.unparse(node.value)
        ):
            yield from _names([node.slice])


def _names(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            yield node.value
