"""An embedded broker of a test's own, and worker processes on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from pulsartasks import PulsarTasks
from tests.conformance import tasks
from tests.conformance.processes import WorkerProcess
from tests.conformance.records import Record

StartProcess = Callable[..., WorkerProcess]


@pytest.fixture
def database() -> Iterator[Path]:
    """Where a local broker may be; a short path, for the sake of the Unix sockets beside it."""
    with tempfile.TemporaryDirectory(prefix="pt-") as folder:
        yield Path(folder) / "broker.db"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """What ran."""
    return Record(tmp_path / "runs.jsonl")


@pytest.fixture
def environment(database: Path, record: Record) -> dict[str, str]:
    """What a process needs to be a worker of `acting`."""
    return {
        "PULSARTASKS_BROKER": f"local://{database}",
        tasks.APP: f"t{uuid4().hex[:10]}",
        tasks.RECORD: str(record.path),
    }


@pytest.fixture
def acting(environment: dict[str, str], record: Record) -> Iterator[PulsarTasks]:
    """The app of `tests.conformance.tasks`."""
    app = tasks.make_app(environment[tasks.APP], environment["PULSARTASKS_BROKER"], record)
    yield app
    app.close()


@pytest.fixture
def start_process(environment: dict[str, str]) -> Iterator[StartProcess]:
    """Starts ``pulsartasks worker`` with these arguments."""
    with ExitStack() as stack:

        def start(*arguments: str, app: str = "tests.conformance.tasks:app", **more: str) -> WorkerProcess:
            worker = WorkerProcess(*arguments, app=app, env={**environment, **more})
            stack.callback(worker.clean_up)
            return worker

        yield start
