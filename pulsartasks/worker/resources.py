"""What a worker process sets up once, before its first message, and tears down at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import structlog

_log = structlog.get_logger("pulsartasks")


class Resources:
    """The resources of one process, by the type they were asked for."""

    def __init__(self, factories: Mapping[type, Callable[[], Iterator[Any]]]) -> None:
        self._factories = factories
        self._values: dict[type, Any] = {}
        self._stack = ExitStack()

    def open(self, wanted: set[type]) -> None:
        """Set up what is `wanted`, in the order of definition; if one fails, those before it are torn down again."""
        with ExitStack() as stack:
            for kind, factory in self._factories.items():
                if kind in wanted:
                    self._values[kind] = stack.enter_context(contextmanager(factory)())
                    _log.debug("resource.opened", resource=factory.__name__)
            self._stack = stack.pop_all()

    def __getitem__(self, kind: type) -> Any:
        return self._values[kind]

    def close(self) -> None:
        """Tear down in reverse order."""
        self._stack.close()
        self._values.clear()
