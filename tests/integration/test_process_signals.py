"""The signals of a program: what is imported, how it logs, and what ends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pulsartasks import PulsarTasks
from tests.integration.conftest import StartProcess
from tests.services import CHECKOUT

APP = """
import logging

from pulsartasks import PulsarTasks

app = PulsarTasks("signalled")

@app.task(name="add", bind=True)
def add(self, x: int, y: int) -> int:
    self.log.info("add.called")
    return x + y
"""
IMPORTING = """
from pulsartasks import PulsarTasks

app = PulsarTasks("signalled")

@app.signals.import_modules.connect
def include(sender, **_):
    import signalled_tasks

@app.signals.worker_shutting_down.connect
def end(sig, how, exitcode, **_):
    print(f"ended by {sig}, {how}, {exitcode}", file=__import__("sys").stderr)
"""
IMPORTED = """
from signalled import app

@app.task
def add(x: int, y: int) -> int:
    return x + y
"""
SETTING_UP = """
@app.signals.setup_logging.connect
def set_up(loglevel, logfile, format, colorize, **_):
    logging.basicConfig(level=loglevel, format="mine %(name)s %(message)s")
"""
ADDING = """
def also(prefix):
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(prefix + " %(message)s"))
    return handler

@app.signals.after_setup_logger.connect
def augment(logger, loglevel, **_):
    logger.addHandler(also("also"))

@app.signals.after_setup_task_logger.connect
def augment_tasks(logger, loglevel, **_):
    logger.addHandler(also("task"))
"""

RunOne = Callable[..., list[str]]


@pytest.fixture
def run_one(start_process: StartProcess, environment: dict[str, str], tmp_path: Path) -> RunOne:
    """What a worker writes that runs one call of these modules."""

    def run_one(**modules: str) -> list[str]:
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
        worker = start_process(app="signalled:app", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")
        app = PulsarTasks("signalled", environment["PULSARTASKS_BROKER"])
        assert app.send_task("add", (2, 3)).get(timeout=120) == 5
        app.close()
        worker.wait_until_ready()
        worker.terminate()
        assert worker.wait() == 0
        worker.wait_for_end_of_children()
        return worker.lines

    return run_one


def test_modules_are_imported_when_the_app_is_there_and_the_end_is_told_with_its_signal(run_one: RunOne) -> None:
    lines = run_one(signalled=IMPORTING, signalled_tasks=IMPORTED)

    assert "ended by SIGTERM, warm, 0" in lines


def test_module_that_cannot_be_imported_ends_the_worker(start_process: StartProcess, tmp_path: Path) -> None:
    (tmp_path / "signalled.py").write_text(IMPORTING)  # and no signalled_tasks

    worker = start_process(app="signalled:app", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")

    assert worker.wait() == 78
    assert "signalled_tasks" in worker.logged("worker.failed")[0]["exception"]


def test_logging_is_left_to_who_sets_it_up(run_one: RunOne) -> None:
    lines = run_one(signalled=APP + SETTING_UP)

    mine = [line for line in lines if line.startswith("mine ")]
    assert any(line.startswith("mine pulsartasks.task ") and "add.called" in line for line in mine)
    assert any(line.startswith("mine pulsartasks ") and "message.succeeded" in line for line in mine)
    own = {msgspec.json.decode(line)["event"] for line in lines if line.startswith("{")}
    assert own == {"process.started", "process.ready", "worker.stopping", "worker.stopped"}  # of the first process


def test_loggers_may_be_added_to_once_they_are_set_up(run_one: RunOne) -> None:
    lines = run_one(signalled=APP + ADDING)

    events = [msgspec.json.decode(line)["event"] for line in lines if line.startswith("{")]
    assert {"add.called", "message.succeeded"} <= set(events)
    also = [line for line in lines if line.startswith("also ")]
    assert sum("message.succeeded" in line for line in also) == sum("add.called" in line for line in also) == 1
    [of_tasks] = [line for line in lines if line.startswith("task ")]
    assert "add.called" in of_tasks
