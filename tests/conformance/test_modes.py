"""Guarantee 6: what each subscription mode promises."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks, TaskContext
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record, Run, overlapping
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(6)


def by_key(runs: Sequence[Run]) -> dict[str, list[Run]]:
    lanes: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        lanes[run.key].append(run)
    return lanes


def first_runs(runs: Sequence[Run]) -> list[str]:
    """The labels in the order in which each was first begun."""
    return list(dict.fromkeys(run.label for run in runs))


# shared


def test_shared_spreads_over_two_workers(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    meeting = threading.Barrier(2)

    @app.task(prefetch=1)
    def meet(number: int) -> None:
        with record.attempt(str(number)):
            meeting.wait(timeout=30)  # only another worker, of one thread each, can be there at the same time

    start_worker(app, concurrency=1)
    start_worker(app, concurrency=1)
    for number in range(4):
        meet.delay(number)

    runs = record.wait_for(4)
    assert len({run.thread for run in runs}) == 2


def test_shared_runs_as_many_at_once_as_its_concurrency(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    meeting = threading.Barrier(3)

    @app.task(concurrency=3)
    def meet(number: int) -> None:
        with record.attempt(str(number)):
            meeting.wait(timeout=30)

    start_worker(app, concurrency=1)
    for number in range(6):
        meet.delay(number)

    record.wait_for(6)


# exclusive


def test_second_worker_of_an_exclusive_subscription_stands_by_and_takes_over(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    @app.task(mode="exclusive")
    def note(label: str) -> None:
        with record.attempt(label):
            pass

    first = start_worker(app)
    with capture_logs() as logs:
        second = start_worker(app)
    note.delay("while the first is there")
    record.wait_for_labels("while the first is there")

    first.stop()
    note.delay("when it has gone")

    record.wait_for_labels("when it has gone")
    assert second.ready
    assert "consumer.stood_by" in [entry["event"] for entry in logs]
    assert record.labels() == ["while the first is there", "when it has gone"]


def test_exclusive_subscription_is_taken_over_when_its_worker_is_killed(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    exclusive = acting.tasks["exclusive"]
    worker = start_process("exclusive").wait_until_ready()
    start_worker(acting, topics=["exclusive"])
    exclusive.delay("killed", seconds=3.0)
    exclusive.delay("behind it")
    record.wait_for_labels("killed", ended=False)

    worker.kill()

    runs = record.wait_for_labels("killed", "behind it")
    assert [run.label for run in runs] == ["killed", "killed", "behind it"]
    assert not overlapping(runs[1:])


@pytest.mark.parametrize("mode", ["exclusive", "failover"])
def test_one_message_at_a_time_and_in_order_whatever_the_concurrency(
    mode: str, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    labels = [f"{number % 3}/{number}" for number in range(12)]
    for label in labels:
        acting.tasks[mode].delay(label, seconds=0.01)

    start_worker(acting, concurrency=8, topics=[mode])

    runs = record.wait_for(12)
    assert [run.label for run in runs] == labels
    assert not overlapping(runs)


@pytest.mark.parametrize("mode", ["exclusive", "failover"])
def test_order_holds_through_a_retry_for_which_all_wait(
    mode: str, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks[mode]
    task.delay("a/0", "retry", times=2)
    for label in ("b/1", "a/2"):
        task.delay(label)

    start_worker(acting, topics=[mode])

    runs = record.wait_for(5)
    assert [(run.label, run.attempt) for run in runs] == [("a/0", 1), ("a/0", 2), ("a/0", 3), ("b/1", 1), ("a/2", 1)]
    assert not overlapping(runs)


# failover


def test_failover_hands_over_when_its_worker_stops(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    @app.task(mode="failover")
    def note(label: str) -> None:
        with record.attempt(label):
            time.sleep(0.02)

    workers = [start_worker(app), start_worker(app)]
    labels = [str(number) for number in range(30)]
    for label in labels[:15]:
        note.delay(label)
    record.wait_for(5)

    workers[0].stop()
    for label in labels[15:]:
        note.delay(label)
    record.wait_for_labels(*labels)

    runs = record.runs()
    assert [run.label for run in runs] == labels
    assert not overlapping(runs)


def test_failover_worker_that_joins_does_not_disturb_the_one_that_runs(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    release = threading.Event()

    @app.task(mode="failover")
    def wait(label: str) -> None:
        with record.attempt(label):
            release.wait(30)

    start_worker(app)
    for label in ("first", "second", "third"):
        wait.delay(label)
    record.wait_for_labels("first", ended=False)

    others = [start_worker(app) for _ in range(3)]
    # Had the subscription moved, its messages would be with the others by now.
    assert all(worker.ready for worker in others)
    wait_until(lambda: time.time() > record.runs()[0].began + 2.5, "time stood still")
    release.set()

    record.wait_for_labels("third")
    assert record.labels() == ["first", "second", "third"]


def test_failover_hands_over_when_its_worker_is_killed(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    failover = acting.tasks["failover"]
    worker = start_process("failover").wait_until_ready()
    start_worker(acting, topics=["failover"])
    failover.delay("killed", seconds=3.0)
    failover.delay("behind it")
    [run] = record.wait_for_labels("killed", ended=False)
    assert run.pid in worker.children()

    worker.kill()

    runs = record.wait_for_labels("killed", "behind it")
    assert first_runs(runs) == ["killed", "behind it"]
    assert not overlapping(runs[1:])


# key_shared


@pytest.mark.wire
def test_key_shared_keeps_each_key_in_order_and_never_runs_one_twice_at_once(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    start_worker(acting, concurrency=4, topics=["key_shared"])
    start_worker(acting, concurrency=4, topics=["key_shared"])

    for number in range(20):
        for key in "abcde":
            task.delay(f"{key}/{number}", seconds=0.005)

    lanes = by_key(record.wait_for(100))
    assert {key: [run.label for run in runs] for key, runs in lanes.items()} == {
        key: [f"{key}/{number}" for number in range(20)] for key in "abcde"
    }
    assert not any(overlapping(runs) for runs in lanes.values())


def test_key_shared_runs_different_keys_at_once(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    meeting = threading.Barrier(3)

    @app.task(mode="key_shared", key=lambda key: key, concurrency=3)
    def meet(key: str) -> None:
        with record.attempt(key):
            meeting.wait(timeout=30)

    start_worker(app)
    for key in "abc":
        meet.delay(key)

    record.wait_for(3)


def test_messages_without_a_key_have_no_order_to_wait_for(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    meeting = threading.Barrier(3)

    @app.task(mode="key_shared", concurrency=3)
    def meet(number: int) -> None:
        with record.attempt(str(number)):
            meeting.wait(timeout=30)

    start_worker(app)
    for number in range(3):
        meet.delay(number)

    record.wait_for(3)


def test_key_waits_for_its_retry_while_other_keys_go_on(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    task.delay("slow/0", "retry", times=2)
    task.delay("slow/1")
    for number in range(2):
        task.delay(f"quick/{number}")

    start_worker(acting, concurrency=2, topics=["key_shared"])

    lanes = by_key(record.wait_for(6))
    assert [(run.label, run.attempt) for run in lanes["slow"]] == [
        ("slow/0", 1),
        ("slow/0", 2),
        ("slow/0", 3),
        ("slow/1", 1),
    ]
    assert [run.label for run in lanes["quick"]] == ["quick/0", "quick/1"]
    assert max(run.began for run in lanes["quick"]) < lanes["slow"][-1].began
    assert not overlapping(lanes["slow"])


def test_waiting_keys_do_not_stop_others_behind_a_full_prefetch(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    release = threading.Event()

    @app.task(mode="key_shared", key=lambda label: label.partition("/")[0], concurrency=2, prefetch=4)
    def wait(label: str) -> None:
        with record.attempt(label):
            if label == "slow/0":
                release.wait(30)

    for number in range(50):
        wait.delay(f"slow/{number}")
    wait.delay("quick/0")

    start_worker(app)

    record.wait_for_labels("quick/0")
    assert record.finished() == ["quick/0"]
    release.set()
    record.wait_for(51)


@pytest.mark.guarantee(1)
def test_key_shared_keeps_its_promise_over_processes_and_through_a_kill(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    keys = [f"key-{number}" for number in range(40)]  # more than one process holds at a time, so both have some
    labels = [f"{key}/{number}" for number in range(4) for key in keys]
    victim = start_process("key_shared", "-c", "4").wait_until_ready()
    start_process("key_shared", "-c", "4").wait_until_ready()
    acting.publish_many([task.s(label, seconds=0.01).publication() for label in labels])
    wait_until(lambda: any(run.pid in victim.children() for run in record.runs()), "the victim ran nothing")

    victim.kill()

    lanes = by_key(record.wait_for_labels(*labels))
    assert {key: first_runs(runs) for key, runs in lanes.items()} == {
        key: [f"{key}/{number}" for number in range(4)] for key in keys
    }
    alive = [run for runs in lanes.values() for run in runs if run.ended is not None]
    assert not any(overlapping(runs) for runs in by_key(alive).values())


# what cannot be mixed


def test_worker_of_another_mode_stands_by_for_the_one_that_is_there(
    broker: BrokerUnderTest, name: str, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    @app.task(topic="work", subscription="one")
    def note(label: str) -> None:
        with record.attempt(label):
            pass

    other_app = PulsarTasks(name, broker.url)

    @other_app.task(topic="work", subscription="one", mode="exclusive", name="note")
    def also_note(label: str) -> None:
        with record.attempt(label):
            pass

    first = start_worker(app)
    with capture_logs() as logs:
        start_worker(other_app)
    assert "consumer.stood_by" in [entry["event"] for entry in logs]

    first.stop()
    note.delay("after the change")

    record.wait_for_labels("after the change")
    other_app.close()


def test_bound_task_knows_its_key(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(mode="key_shared", bind=True, key=lambda chat: f"chat-{chat}")
    def tell(context: TaskContext, chat: int) -> str | None:
        return context.request.key

    start_worker(app)

    assert tell.delay(7).get(timeout=120) == "chat-7"
    assert tell.using(key="mine").delay(7).get(timeout=120) == "mine"
