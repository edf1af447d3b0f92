"""The first process of a worker: it replaces children that die, and stops when it is told, at once when told twice."""

from __future__ import annotations

import os
import signal
import time

from pulsartasks import PulsarTasks
from pulsartasks.worker.supervisor import SAME_SIGNAL
from tests.conformance.records import Record
from tests.integration.conftest import StartProcess
from tests.services import wait_until


def test_second_signal_stops_now_and_what_ran_comes_again(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "--processes", "2", "--grace", "600").wait_until_ready(2)
    acting.tasks["shared"].delay("long", seconds=4.0)
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
    acting.tasks["shared"].delay("a", seconds=1.0)
    acting.tasks["shared"].delay("b", seconds=1.0)
    record.wait_for(2, ended=False)

    os.kill(victim, signal.SIGKILL)

    runs = record.wait_for_labels("a", "b")
    assert {run.pid for run in runs if run.ended is None} == {victim}
    assert other in {run.pid for run in runs if run.ended is not None}
    assert len(worker.logged("process.died")) == 1


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
