"""Tables of the docs say what the code has: options, settings of the worker, events of the log."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from pulsartasks import message
from pulsartasks.cli.beat import beat
from pulsartasks.cli.worker import worker
from pulsartasks.options import TaskOptions
from pulsartasks.signals import Signals
from pulsartasks.signature import CallOptions

CHECKOUT = Path(__file__).parent.parent.parent
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def test_every_option_of_a_task_is_documented_with_its_default() -> None:
    rows = {row[0].strip("`"): row[1].strip("`") for row in _table("tasks.md", "option")}

    assert rows == {field.name: repr(field.default) for field in fields(TaskOptions)}


def test_every_option_of_a_call_is_documented() -> None:
    assert [row[0].strip("`") for row in _table("tasks.md", "option of a call")] == [
        f.name for f in fields(CallOptions)
    ]


@pytest.mark.parametrize(("command", "head", "at"), [(worker, "option", 1), (beat, "option of beat", 0)])
def test_every_option_of_a_command_is_documented_with_its_default(command: click.Command, head: str, at: int) -> None:
    rows = [(row[0].split("`")[1::2], row[1].strip("`")) for row in _table("tasks.md", head, at=at)]

    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [names for names, _ in rows] == [option.opts for option in options]
    for (_, default), option in zip(rows, options, strict=True):
        assert not option.show_default or default == str(option.default)


def test_every_signal_is_documented() -> None:
    names = [row[0].strip("`") for row in _table("tasks.md", "signal")]

    assert sorted(names) == sorted(vars(Signals()))


def test_every_event_of_the_log_is_documented_with_its_levels_and_fields() -> None:
    documented = {
        row[0].strip("`"): (set(row[1].split(", ")), set(row[2].split("`")[1::2]))
        for row in _table("logging.md", "event")
    }

    assert documented == _events()


def test_every_header_is_documented() -> None:
    names = [row[0].strip("`") for row in _table("other-languages.md", "header")]

    headers = {value for name, value in vars(message).items() if name.isupper() and isinstance(value, str)}
    assert sorted(names) == sorted(headers - {message.RESERVED_PREFIX})


@pytest.mark.parametrize("name", sorted(CHECKOUT.glob("docs/*.md")), ids=lambda path: path.stem)
def test_every_page_is_reached_from_the_readme(name: Path) -> None:
    assert f"(docs/{name.name}" in (CHECKOUT / "README.md").read_text("utf-8")


def _table(page: str, first_column: str, *, at: int = 0) -> list[list[str]]:
    """The rows of the page's table (the first one, or number `at` from 0) whose first column has this head."""
    text = (CHECKOUT / "docs" / page).read_text("utf-8")
    tables = re.findall(rf"^\| {re.escape(first_column)} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in tables[at].splitlines()]


def _events() -> dict[str, tuple[set[str], set[str]]]:
    """Every event that the library logs, with its levels and fields."""
    events: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for path in (CHECKOUT / "pulsartasks").rglob("*.py"):
        for level, event, names in _logged(ast.parse(path.read_text("utf-8"))):
            events[event][0].add(LEVELS[level])
            events[event][1].update("exception" if name == "exc_info" else name for name in names)
            events[event][1].update(["exception"] if level == "exception" else [])
    return dict(events)


def _logged(tree: ast.AST) -> Iterator[tuple[str, str, list[str]]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                ast.Attribute(ast.Name("_log") | ast.Attribute(attr="_log"), level),
                [ast.Constant(str(event)), *_],
                keywords,
            ):
                yield level, event, [keyword.arg or "**" for keyword in keywords]
            case ast.Call(ast.Attribute(ast.Name("_log"), level)):
                raise AssertionError(f"an event's name is not a text: {ast.unparse(node)}")
