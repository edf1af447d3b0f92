"""Imports point to a lower layer, and none is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.layers import violations

CHECKOUT = Path(__file__).parent.parent.parent


def test_every_import_points_to_a_lower_layer() -> None:
    assert list(violations(CHECKOUT)) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("pulsartasks/retry.py", "from pulsartasks.brokers.base import Broker", "words do not import ports"),
        ("pulsartasks/retry.py", "import threading", "start no threads"),
        ("pulsartasks/retry.py", "import structlog", "standard library"),
        ("pulsartasks/brokers/base.py", "from .local import LocalBroker", "ports do not import adapters"),
        ("pulsartasks/brokers/local.py", "import pulsartasks.app", "adapters do not import face"),
        ("pulsartasks/results/topic.py", "from pulsartasks.brokers import local", "adapters do not import each other"),
        ("pulsartasks/task.py", "from pulsartasks.app import PulsarTasks", "comes after pulsartasks.task"),
        ("pulsartasks/app.py", "from pulsartasks.brokers.local import LocalBroker", "face do not import adapters"),
        ("pulsartasks/app.py", "from pulsartasks.worker import pool", "face do not import runtime"),
        ("pulsartasks/worker/pool.py", "from pulsartasks import cli", "runtime do not import edges"),
        ("pulsartasks/worker/pool.py", "from pulsar import Client", "only pulsartasks.brokers.pulsar"),
        ("pulsartasks/worker/pool.py", "import apps.events", "the library imports apps"),
        ("pulsartasks/app.py", "def f():\n    import pulsartasks.retry", "in a function"),
        ("pulsartasks/cli/__init__.py", "def f():\n    import json", "in a function"),
        ("pulsartasks/app.py", "if TYPE_CHECKING:\n    import pulsartasks.retry", "under TYPE_CHECKING"),
        ("pulsartasks/app.py", "importlib.import_module('pulsartasks.brokers.local')", "only plugins.load()"),
        ("apps/images/tasks.py", "from apps.chat.models import Message", "blobs and topics only"),
        ("apps/chat/tasks.py", "import tools.cache", "an app imports tools"),
        ("tools/cache.py", "import msgspec", "before anything is installed"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, source: str, complaint: str) -> None:
    _write_modules(tmp_path)
    (tmp_path / module).write_text(source)

    (found,) = violations(tmp_path)

    assert found.startswith(f"{module}:")
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pulsartasks/contrib/blobs.py", "def f():\n    import boto3"),
        ("apps/chat/tasks.py", "def f():\n    from apps.chat.whisper_engine import load"),
        ("pulsartasks/brokers/local.py", "from .base import Broker"),
        ("pulsartasks/task.py", "from pulsartasks import plugins, retry"),
        ("pulsartasks/plugins.py", "importlib.import_module(f'pulsartasks.{group}')"),
        ("pulsartasks/worker/pool.py", "importlib.import_module(name)"),
        ("apps/run.py", "from apps.chat import tasks"),
    ],
)
def test_a_right_import_is_let_through(tmp_path: Path, module: str, source: str) -> None:
    _write_modules(tmp_path)
    (tmp_path / module).write_text(source)

    assert list(violations(tmp_path)) == []


def _write_modules(root: Path) -> None:
    library = ("retry", "plugins", "task", "app", "brokers/base", "brokers/local", "results/topic", "worker/pool")
    modules = [f"pulsartasks/{name}" for name in (*library, "cli/__init__", "contrib/blobs")]
    for module in (*modules, "apps/events", "apps/run", "apps/chat/models", "apps/chat/tasks", "apps/images/tasks"):
        path = root / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for package in ("pulsartasks", "pulsartasks/brokers", "pulsartasks/results", "pulsartasks/worker", "apps"):
        (root / package / "__init__.py").touch()
    (root / "apps" / "chat" / "whisper_engine.py").write_text("import whisper")
    (root / "tools").mkdir()
    (root / "tools" / "cache.py").touch()
