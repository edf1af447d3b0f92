"""The one way up: adapters, stores, testing and contrib are loaded by name, when they are wanted."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

from pulsartasks.errors import ConfigurationError

SHARED = {"base", "forgotten", "inbox"}
"""Modules that are no choice themselves, but what others stand on."""


def load(group: str, name: str) -> ModuleType:
    """The module of pulsartasks' own `group` (``brokers``, ``results``, ``testing``, ...) called `name`.

    What is not ours is looked for among the entry points of the group ``pulsartasks.<group>``, so another package can
    add a broker or a store of its own.

    Raises:
        ConfigurationError: there is none of this name, or it needs a package that is not installed.
    """
    package = importlib.import_module(f"pulsartasks.{group}")
    ours = {module.name for module in pkgutil.iter_modules(package.__path__)} - SHARED
    try:
        if name in ours:
            return importlib.import_module(f"pulsartasks.{group}.{name}")
        for entry in entry_points(group=f"pulsartasks.{group}", name=name):
            return entry.load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{group} {name!r} needs the package {error.name!r}: pip install {error.name}"
        ) from error
    close = difflib.get_close_matches(name, ours, n=1)
    raise ConfigurationError(
        f"there is no {name!r} among the {group}; "
        + (f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(ours))}")
    )
