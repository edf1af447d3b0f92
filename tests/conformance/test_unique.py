"""Guarantee 15: of the calls that have a unique key in common one waits or runs, and the others get its handle."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from structlog.testing import capture_logs

from pulsartasks import InvalidArgumentsError, MessageTooLargeError, PulsarTasks, Reject, Task, TaskRevokedError, unique
from pulsartasks.brokers.base import MAX_MESSAGE_SIZE
from pulsartasks.message import Publication
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.records import Record
from tests.conformance.tasks import APP, RECORD
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(15)

CALLER = """
import os, sys
from tests.conformance.tasks import app
task = app.tasks["unique"]
task.delay(f"warm up {os.getpid()}")
print("ready", flush=True)
sys.stdin.readline()
print(task.delay("report").id, flush=True)
"""


@pytest.fixture
def other_app(broker: BrokerUnderTest, name: str) -> Iterator[PulsarTasks]:
    """The same app as another process would have it."""
    app = PulsarTasks(name, broker.url)
    yield app
    app.close()


def _define(app: PulsarTasks, run: Callable[[str], object], *, unique_for: float = 3600.0) -> Task[[str], str]:
    @app.task(unique_key=lambda month: month, unique_for=unique_for, max_retries=1, autoretry_for=(OSError,))
    def report(month: str) -> str:
        run(month)
        return f"{month} is done"

    return report


def test_of_processes_that_call_at_once_one_is_heard_and_all_get_its_handle(
    acting: PulsarTasks, broker: BrokerUnderTest, name: str, start_worker: Workers, record: Record
) -> None:
    environment = {"PULSARTASKS_BROKER": broker.url, APP: name, RECORD: str(record.path)}
    with ExitStack() as stack:
        callers = [stack.enter_context(_caller(environment)) for _ in range(5)]
        for caller in callers:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "ready\n"
        for caller in callers:
            assert caller.stdin is not None
            caller.stdin.write("go\n")
            caller.stdin.flush()
        ids = {caller.stdout.readline().strip() for caller in callers if caller.stdout}

    assert len(ids) == 1
    start_worker(acting, topics=["unique"])
    assert acting.tasks["unique"].result(ids.pop()).get(timeout=120).startswith("report")
    acting.tasks["unique"].delay("last").get(timeout=120)
    assert record.labels().count("report") == 1


def _caller(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CALLER],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_call_waits_with_another_though_it_comes_from_elsewhere_and_is_called_otherwise(
    app: PulsarTasks, other_app: PulsarTasks, start_worker: Workers
) -> None:
    ran: list[str] = []
    here, there = _define(app, ran.append), _define(other_app, ran.append)

    calls = [
        here.delay("may"),
        there.delay("may"),
        here.apply_async(("may",), countdown=60, task_id="mine"),
        asyncio.run(there.adelay("may")),
        here.delay("june"),
    ]
    start_worker(app)

    assert [call.get(timeout=120) for call in calls] == [*["may is done"] * 4, "june is done"]
    assert len({call.id for call in calls}) == 2
    assert sorted(ran) == ["june", "may"]


def test_threads_that_call_at_once_get_one_handle(app: PulsarTasks) -> None:
    report = _define(app, lambda _: None)
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(report.delay("may").id)) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(ids) == 8
    assert len(set(ids)) == 1


@pytest.mark.parametrize("end", ["success", "dead letter", "revoked", "retry"])
def test_key_is_free_when_the_call_has_ended_and_not_before(end: str, app: PulsarTasks, start_worker: Workers) -> None:
    begun, finish = threading.Event(), threading.Event()
    attempts: list[str] = []
    called_meanwhile: list[str] = []

    def run(month: str) -> None:
        attempts.append(month)
        if len(attempts) == 1:
            begun.set()
            assert finish.wait(30)
            if end == "dead letter":
                raise Reject("no data")
            if end == "retry":
                raise ConnectionError
        elif end == "retry" and len(attempts) == 2:
            called_meanwhile.append(report.delay("may").id)

    report = _define(app, run)
    first = report.delay("may")
    if end == "revoked":
        first.revoke()
        attempts.append("revoked")
    start_worker(app)
    if end != "revoked":
        assert begun.wait(30)
        assert report.delay("may").id == first.id
        finish.set()
    if end == "dead letter":
        with pytest.raises(Reject):
            first.get(timeout=120)
    elif end == "revoked":
        with pytest.raises(TaskRevokedError):
            first.get(timeout=120)
    else:
        first.get(timeout=120)

    wait_until(lambda: report.delay("may").id != first.id, "its key is still taken")
    assert called_meanwhile == ([first.id] if end == "retry" else [])


def test_key_is_free_after_its_time_though_nothing_has_run(app: PulsarTasks) -> None:
    report = _define(app, lambda _: None, unique_for=3.0)
    report.delay("june")  # opens what calls go through
    began = time.time()
    first = report.delay("may")
    assert report.delay("may").id == first.id

    wait_until(lambda: report.delay("may").id != first.id, "its key is still taken")

    assert time.time() - began >= 3.0


def test_claim_of_a_caller_that_died_before_it_sent_is_over_soon(
    app: PulsarTasks, monkeypatch: pytest.MonkeyPatch, start_worker: Workers
) -> None:
    monkeypatch.setattr(unique, "CLAIM_FOR", 10.0)  # half of it is what a claim may take
    report = _define(app, lambda _: None)
    dead = unique.Record("claim", "report", "may", "dead", 3600.0)
    assert app.unique.claim(dead) == dead
    assert report.delay("may").id == "dead"

    wait_until(lambda: report.delay("may").id != "dead", "its key is still taken")

    start_worker(app)
    assert report.delay("may").get(timeout=120) == "may is done"


def test_call_that_cannot_be_sent_takes_no_key(app: PulsarTasks) -> None:
    @app.task(unique_key=lambda text: "same")
    def store(text: str) -> None: ...

    with pytest.raises(MessageTooLargeError):
        store.delay("x" * (MAX_MESSAGE_SIZE + 1))

    call = store.delay("short")
    assert store.delay("shorter").id == call.id


def test_call_without_a_key_is_sent_as_ever(app: PulsarTasks) -> None:
    @app.task(unique_key=lambda month: month or None)
    def report(month: str) -> None: ...

    assert report.delay("").id != report.delay("").id
    assert report.delay("may").id == report.delay("may").id


def test_tasks_do_not_share_keys(app: PulsarTasks) -> None:
    @app.task(unique_key=lambda month: month)
    def report(month: str) -> None: ...

    @app.task(unique_key=lambda month: month)
    def invoice(month: str) -> None: ...

    assert report.delay("may").id != invoice.delay("may").id


def test_where_it_cannot_be_told_whether_it_is_sent_it_is_refused(app: PulsarTasks) -> None:
    report = _define(app, lambda _: None)

    with pytest.raises(InvalidArgumentsError, match=r"outside app\.publishing"), app.publishing():
        report.delay("may")
    with pytest.raises(InvalidArgumentsError, match=r"outside app\.publishing"):
        report.map([("may",)])
    with pytest.raises(InvalidArgumentsError, match=r"use delay\(\)"):
        (report.s("may") | report.s()).delay()
    with pytest.raises(InvalidArgumentsError, match=r"use delay\(\)"):
        report.s("may").publication()
    with pytest.raises(InvalidArgumentsError, match=r"use delay\(\)"):
        report.starmap([("may",)])


def test_record_that_is_none_is_passed_over(app: PulsarTasks) -> None:
    report = _define(app, lambda _: None)
    first = report.delay("may")

    with capture_logs() as logs:
        app.broker.publish(Publication(app.qualify(f"{app.name}.unique-claims"), b"no record"))
        assert report.delay("may").id == first.id

    assert [entry["event"] for entry in logs] == ["notice.unreadable"]


def test_app_without_unique_tasks_makes_no_topic_for_them(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task
    def report() -> None: ...

    start_worker(app)
    report.delay().get(timeout=120)

    assert f"persistent://public/default/{app.name}.unique-claims" not in broker.topics()
