"""The first process of a worker: it replaces children that die, and stops when it is told, at once when told twice."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulsartasks import PulsarTasks
from pulsartasks.worker.supervisor import SAME_SIGNAL
from tests.conformance.records import Record
from tests.integration.conftest import StartProcess
from tests.services import CHECKOUT, wait_until


def test_second_signal_stops_now_and_what_ran_comes_again(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "--processes", "2", "--grace", "600").wait_until_ready(2)
    acting.tasks["shared"].delay("long", seconds=8.0)
    record.wait_for(1, ended=False)

    worker.terminate()
    worker.wait_for_log("worker.stopping")
    another = time.monotonic() + SAME_SIGNAL
    wait_until(lambda: time.monotonic() > another, "time stood still")
    worker.terminate()

    assert worker.wait(20) == 0
    worker.wait_for_end_of_children()
    assert record.finished() == []
    start_process("-Q", "shared")
    record.wait_for(1)


def test_idle_worker_stops_at_once(start_process: StartProcess) -> None:
    worker = start_process("-Q", "shared", "--grace", "600").wait_until_ready()

    began = time.monotonic()
    worker.terminate()

    assert worker.wait() == 0
    assert time.monotonic() - began < 10
    worker.wait_for_end_of_children()


def test_signal_before_the_children_are_ready_stops_too(start_process: StartProcess) -> None:
    worker = start_process("-Q", "shared", "--processes", "2")
    worker.wait_for_log("process.started")

    worker.terminate()

    assert worker.wait() == 0
    worker.wait_for_end_of_children()


def test_child_that_dies_again_and_again_is_replaced_more_and_more_slowly(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "-c", "1")
    acting.tasks["shared"].delay("poison", "exit")

    died = worker.wait_for_log("process.died", count=3)

    assert [line["status"] for line in died[:3]] == [3, 3, 3]
    assert [line["restart_in"] for line in died[:3]] == [0.25, 0.5, 1.0]


def test_other_children_go_on_when_one_dies(acting: PulsarTasks, start_process: StartProcess, record: Record) -> None:
    worker = start_process("-Q", "shared", "-c", "1", "--processes", "2").wait_until_ready(2)
    victim, other = worker.children()
    acting.tasks["shared"].delay("a", seconds=3.0)
    acting.tasks["shared"].delay("b", seconds=3.0)
    record.wait_for(2, ended=False)

    os.kill(victim, signal.SIGKILL)

    runs = record.wait_for_labels("a", "b")
    assert {run.pid for run in runs if run.ended is None} == {victim}
    assert other in {run.pid for run in runs if run.ended is not None}
    assert len(worker.logged("process.died")) == 1


CHILDREN_OF_TASKS = """
import os, signal, subprocess, time, warnings
from pulsartasks import PulsarTasks
warnings.simplefilter("ignore", DeprecationWarning)
app = PulsarTasks("family")

@app.task
def fork_and_die(once: str) -> None:
    if not os.path.exists(once):
        open(once, "w").close()
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

@app.task
def fork_and_come_back(raising: bool) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if raising:
        raise RuntimeError("in the child")
    return 0

@app.task
def start_and_terminate() -> int:
    with subprocess.Popen(["sleep", "600"]) as process:
        process.terminate()
        return process.wait()
"""


@pytest.fixture
def family(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PulsarTasks]:
    """An app whose tasks have children, as the worker that is started has it."""
    (tmp_path / "family.py").write_text(CHILDREN_OF_TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{CHECKOUT}")
    monkeypatch.setenv("PULSARTASKS_BROKER", environment["PULSARTASKS_BROKER"])
    app = importlib.import_module("family").app
    yield app
    app.close()
    del sys.modules["family"]


def test_child_is_replaced_though_what_its_task_forked_lives_on(
    family: PulsarTasks, start_process: StartProcess, tmp_path: Path
) -> None:
    worker = start_process(app="family:app").wait_until_ready()

    result = family.tasks["fork_and_die"].delay(str(tmp_path / "once"))

    assert result.get(timeout=120) is None
    worker.wait_for_log("process.died", status=-signal.SIGKILL)


def test_what_a_task_forked_does_not_come_back_as_another_worker(
    family: PulsarTasks, start_process: StartProcess
) -> None:
    worker = start_process("-c", "4", app="family:app").wait_until_ready()

    results = [family.tasks["fork_and_come_back"].delay(raising=raising) for raising in (True, False)]

    assert [result.get(timeout=120) for result in results] == [1, 1]
    forked = worker.wait_for_log("task.forked", count=2)
    assert ["in the child" in line["exception"] for line in forked if "exception" in line] == [True]
    assert family.tasks["start_and_terminate"].delay().get(timeout=120) == -signal.SIGTERM


def test_task_can_terminate_what_it_starts(family: PulsarTasks, start_process: StartProcess) -> None:
    start_process(app="family:app").wait_until_ready()

    result = family.tasks["start_and_terminate"].delay()

    assert result.get(timeout=120) == -signal.SIGTERM


def test_stopped_child_is_killed_when_the_grace_is_over(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "--grace", "0").wait_until_ready()
    [child] = worker.children()
    os.kill(child, signal.SIGSTOP)  # as one that hangs with the interpreter's lock held

    worker.terminate()

    assert worker.wait(30) == 0
    assert worker.logged("process.killed", pid=child)
    wait_until(lambda: not _exists(child), "the child is still there")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
