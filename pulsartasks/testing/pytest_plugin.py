"""Fixtures for pytest; they are there where pulsartasks is installed, and each may be overridden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pulsartasks.app import PulsarTasks
from pulsartasks.errors import ConfigurationError
from pulsartasks.published import Testing
from pulsartasks.worker.child import find_app


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("pulsartasks_app", "the app under test, as MODULE:APP")


@pytest.fixture
def pulsartasks_app(pytestconfig: pytest.Config) -> PulsarTasks:
    """The app under test: what `pulsartasks_app` in pytest's settings names, else override this fixture."""
    name = pytestconfig.getini("pulsartasks_app")
    if not name:
        raise pytest.UsageError(
            "which app? Write pulsartasks_app = shop:app among pytest's settings, or a fixture pulsartasks_app"
        )
    try:
        return find_app(name)
    except ConfigurationError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture
def pulsartasks_options() -> dict[str, Any]:
    """What ``app.testing()`` is called with, e.g. ``{"eager": True}``; override it where that is to be other."""
    return {}


@pytest.fixture
def pulsartasks_worker(pulsartasks_app: PulsarTasks, pulsartasks_options: dict[str, Any]) -> Iterator[Testing]:
    """A worker in this process, on a broker in memory that the test has to itself: ``join``, ``advance``, ``published``
    and ``assert_published``.
    """
    with pulsartasks_app.testing(**pulsartasks_options) as running:
        yield running
