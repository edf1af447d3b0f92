"""What commands share: finding the app, and errors as one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

from pulsartasks.app import PulsarTasks
from pulsartasks.errors import ConfigurationError, PulsarTasksError
from pulsartasks.worker.child import AppImportError, find_app

app_option = click.option(
    "-A", "--app", "app_path", required=True, metavar="MODULE:APP", help="Where the app is, e.g. shop.tasks:app."
)


@contextmanager
def opened_app(path: str, *, in_memory: bool = False) -> Iterator[PulsarTasks]:
    """The app at `path`, closed at the end; what goes wrong is said in one line and exits with status 1.

    Above it is the traceback of a module that cannot be imported. An app in memory, of which only its own process sees
    anything, is refused unless it may be `in_memory`.
    """
    try:
        app = find_app(path)
        if app.broker_url.startswith("memory:") and not in_memory:
            raise ConfigurationError(
                "memory:// is within one process, so what it has is seen there alone; use local://"
            )
        try:
            yield app
        finally:
            app.close()
    except PulsarTasksError as error:
        if isinstance(error, AppImportError):
            traceback.print_exception(error.__cause__)
        raise click.ClickException(str(error)) from error


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The rows as lines, each column as wide as its widest cell.

    >>> list(table([("topic", "backlog"), ("shop.mail", "3")]))
    ['topic      backlog', 'shop.mail  3']
    """
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
