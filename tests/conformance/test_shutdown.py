"""Guarantee 9: a worker process that is told to stop loses nothing and doubles nothing."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest

from pulsartasks import PulsarTasks
from tests.conformance.conftest import StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(9)


def test_sigterm_finishes_what_runs_and_gives_back_the_prefetched(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    shared = acting.tasks["shared"]
    worker = start_process("shared", "-c", "2")
    acting.publish_many([shared.s(str(number), seconds=0.5).publication() for number in range(10)])
    record.wait_for(2, ended=False)

    worker.terminate()

    assert worker.wait() == 0
    assert 2 <= len(record.finished()) < 10
    assert len(record.finished()) == len(record.labels())
    start_worker(acting, topics=["shared"])
    record.wait_for_labels(*map(str, range(10)))
    assert Counter(record.labels()) == Counter(map(str, range(10)))


def test_suspects_that_wait_to_run_alone_do_not_begin_any_more(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    shared = acting.tasks["shared"]
    worker = start_process("shared", "-c", "4").wait_until_ready()
    for number in range(4):
        shared.delay(str(number), seconds=1.0)
    record.wait_for(4, ended=False)
    [child] = worker.children()
    os.kill(child, 9)
    worker.wait_for_log("message.suspected", count=4)
    record.wait_for(5, ended=False)

    worker.terminate()

    assert worker.wait() == 0
    assert len(record.labels()) - 4 == len(record.finished()) < 4
    start_process("shared", "-c", "4")
    wait_until(lambda: len(record.finished()) >= 4, "not all of them ended")
    assert sorted(record.finished()) == list("0123")


def test_task_that_outlasts_the_grace_comes_again(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("shared", "--grace", "0.2")
    acting.tasks["shared"].delay("endless", "hang")
    record.wait_for(1, ended=False)

    worker.terminate()

    assert worker.wait(30) == 0
    worker.wait_for_log("worker.grace_exceeded")
    start_process("shared")
    record.wait_for(2, ended=False)
    assert record.finished() == []


def test_rolling_restart_under_load_loses_and_doubles_nothing(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    shared = acting.tasks["shared"]
    labels = [str(number) for number in range(800)]
    enough = threading.Event()

    def call() -> None:
        for start in range(0, len(labels), 20):  # 200 a second
            acting.publish_many([shared.s(label, seconds=0.05).publication() for label in labels[start : start + 20]])
            enough.wait(0.1)

    workers = [start_process("shared", "-c", "8").wait_until_ready() for _ in range(2)]
    load = threading.Thread(target=call)
    load.start()
    for number, worker in enumerate(workers, start=1):
        record.wait_for(100 * number)
        worker.terminate()
        assert worker.wait() == 0
        start_process("shared", "-c", "8")
    load.join()

    record.wait_for_labels(*labels)
    assert Counter(record.labels()) == Counter(labels)


def test_children_stop_when_their_supervisor_is_killed(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    shared = acting.tasks["shared"]
    worker = start_process("shared", "-c", "1", "--processes", "2").wait_until_ready(2)
    shared.delay("running", seconds=1.0)
    record.wait_for_labels("running", ended=False)

    worker.kill_supervisor()
    worker.wait_for_end_of_children()

    assert record.finished() == ["running"]  # told by the end of the pipe, they finish first
    shared.delay("next")
    start_worker(acting, topics=["shared"])
    record.wait_for_labels("next")
    assert record.labels() == ["running", "next"]


@pytest.mark.guarantee(1)
def test_child_that_dies_is_replaced(acting: PulsarTasks, start_process: StartProcess, record: Record) -> None:
    shared = acting.tasks["shared"]
    worker = start_process("shared").wait_until_ready()
    [child] = worker.children()

    os.kill(child, 9)
    shared.delay("next")

    [run] = record.wait_for_labels("next")
    assert run.pid in worker.children()
    assert run.pid != child
    [died] = worker.logged("process.died")
    assert (died["pid"], died["status"]) == (child, -9)
