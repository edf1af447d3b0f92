"""Guarantee 5: a message that kills its worker is given up in time, its neighbours are not; what a death repeats."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest

from pulsartasks import PulsarTasks
from pulsartasks.dead_letters import DeadLetters, Kept
from pulsartasks.errors import TimeLimitExceeded, WorkerCrashedError
from tests.conformance.conftest import StartProcess, Workers
from tests.conformance.records import Record
from tests.conformance.tasks import MODES
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(5)


def dead_letters(app: PulsarTasks, task: str) -> dict[str, str]:
    """The reasons of a task's dead letters, by the label that it was called with."""

    def label(kept: Kept) -> str:
        [args, _] = app.tasks[task].codec.decode(kept.delivery.value)
        return str(args[0])

    return {label(kept): kept.story.reason for kept in DeadLetters(app, app.tasks[task]).list() if kept.story}


@pytest.mark.parametrize("mode", MODES)
def test_task_that_ends_its_process_is_given_up_after_max_crashes_and_no_neighbour_is(
    mode: str, acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    task = acting.tasks[mode]
    before = [f"a/{number}" for number in range(4)]
    behind = [f"b/{number}" for number in range(4)]
    for label in before:
        task.delay(label, seconds=0.05)
    poison = task.delay("poison/0", "exit")
    for label in behind:
        task.delay(label, seconds=0.05)

    start_process(mode, "-c", "4")

    with pytest.raises(WorkerCrashedError, match="3 worker processes died"):
        poison.get(timeout=120)
    record.wait_for_labels(*before, *behind)
    assert record.labels().count("poison/0") == 3
    assert dead_letters(acting, mode) == {"poison/0": "crashed"}


def test_whole_workers_that_die_count_as_well(acting: PulsarTasks, start_process: StartProcess, record: Record) -> None:
    poison = acting.tasks["shared"].delay("poison", "kill all")
    neighbour = acting.tasks["shared"].delay("neighbour", seconds=0.05)

    for _ in range(3):
        start_process("shared").wait()
    start_process("shared")

    with pytest.raises(WorkerCrashedError):
        poison.get(timeout=120)
    assert neighbour.get(timeout=120).startswith("neighbour")
    assert record.labels().count("poison") == 3


def test_what_is_replayed_after_its_crashes_may_crash_as_often_again(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    poison = acting.tasks["shared"].delay("poison", "exit")
    start_process("shared")
    with pytest.raises(WorkerCrashedError):
        poison.get(timeout=120)

    assert len(list(DeadLetters(acting, acting.tasks["shared"]).replay())) == 1

    record.wait_for(6, ended=False)


def test_task_that_eats_its_memory_limit_is_given_up(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    glutton = acting.tasks["shared"].delay("glutton", "eat")
    worker = start_process("shared", "--max-memory-per-child", "400")

    with pytest.raises(WorkerCrashedError):
        glutton.get(timeout=120)
    assert [line["reason"] for line in worker.logged("process.killed")] == ["memory"] * 3
    assert acting.tasks["shared"].delay("next").get(timeout=120).startswith("next")


@pytest.mark.parametrize("deed", ["spin", "hold"])
@pytest.mark.guarantee(10)
def test_hard_time_limit_ends_what_nothing_else_ends_and_spares_its_neighbours(
    deed: str, acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    limited = acting.tasks["limited"]
    slow = limited.delay("slow", deed)
    start_process("limited", "-c", "2")
    record.wait_for_labels("slow", ended=False)
    beside = limited.delay("beside", seconds=0.1)

    with pytest.raises(TimeLimitExceeded, match="limit of 1 s"):
        slow.get(timeout=120)
    assert beside.get(timeout=120).startswith("beside")
    assert Counter(record.labels())["slow"] == 2  # it is retried as an exception of that name would be
    assert dead_letters(acting, "limited") == {"slow": "failed"}


@pytest.mark.guarantee(6)
def test_attempts_in_place_go_on_counting_after_a_crash(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    task.delay("a/0", "retry", times=3)
    task.delay("a/1")
    worker = start_process("key_shared")
    record.wait_for(2)

    worker.kill()
    worker.wait_for_end_of_children()  # until then nobody can know
    start_worker(acting, topics=["key_shared"])

    runs = record.wait_for_labels("a/1")
    attempts = [run.attempt for run in runs if run.label == "a/0"]
    assert attempts[:2] == [1, 2]
    assert attempts[-1] == 4
    assert len(attempts) <= 5  # at most the one that ran when the process was killed ran twice


def test_attempts_in_place_go_on_counting_after_a_stop(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    task.delay("a/0", "retry", times=2)
    worker = start_process("key_shared")
    record.wait_for(1)

    worker.terminate()
    assert worker.wait() == 0
    start_worker(acting, topics=["key_shared"])

    runs = record.wait_for(3)
    assert [run.attempt for run in runs] == [1, 2, 3]


@pytest.mark.guarantee(1)
def test_what_had_finished_before_a_crash_does_not_run_again(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    task = acting.tasks["exclusive"]
    labels = [str(number) for number in range(20)]
    acting.publish_many([task.s(label).publication() for label in labels])
    poison = task.delay("poison", "exit")

    start_process("exclusive")

    with pytest.raises(WorkerCrashedError):
        poison.get(timeout=120)
    assert Counter(record.labels()) == {**dict.fromkeys(labels, 1), "poison": 3}


def test_suspect_runs_alone(acting: PulsarTasks, start_process: StartProcess, record: Record) -> None:
    task = acting.tasks["shared"]
    for number in range(3):
        task.delay(f"beside {number}", seconds=0.5)
    task.delay("poison", "exit", seconds=0.2)

    start_process("shared", "-c", "4")

    record.wait_for_labels(*[f"beside {number}" for number in range(3)])
    wait_until(lambda: record.labels().count("poison") == 3, "the poison did not run three times")
    runs = record.runs()
    for suspect in [run for run in runs if run.label == "poison"][1:]:
        mates = [run for run in runs if run.pid == suspect.pid and run is not suspect]
        assert all((run.ended or inf) <= suspect.began for run in mates)
