"""Guarantee 13: how far a task is reaches its caller and whoever asks, and its end always wins."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import pytest
from structlog.testing import capture_logs

from pulsartasks import AsyncResult, BrokerUnavailableError, InvalidArgumentsError, PulsarTasks, TaskContext
from pulsartasks.results.base import Reported, ResultStore
from pulsartasks.task import Task
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(13)


@pytest.fixture
def app(broker: BrokerUnderTest, name: str, results: str) -> Iterator[PulsarTasks]:
    """An app with each store of results."""
    app = PulsarTasks(name, broker.url, results=results)
    yield app
    app.close()


@pytest.fixture
def go_on() -> threading.Event:
    """Lets the tasks of a test end."""
    return threading.Event()


@pytest.fixture
def stepping(app: PulsarTasks, go_on: threading.Event) -> Task[[], str]:
    @app.task(bind=True)
    def stepping(self: TaskContext) -> str:
        self.progress(1, 3, "first")
        go_on.wait(60)
        self.progress(2, 3, "second")
        self.progress(3, 3, "third")
        return "done"

    return stepping


def wait_for_state(result: AsyncResult[Any], state: str) -> None:
    wait_until(lambda: result.state == state, f"{result!r} is {result.state}, not {state}")


def reports(app: PulsarTasks) -> int:
    """How many messages tell of tasks that had not ended."""
    topic = app.qualify(f"{app.name}.results-states")
    app.broker.declare(topic, [])
    reader = app.broker.read(topic, since=time.time() - 600)
    count = 0
    while reader.receive(0.0) is not None:
        count += 1
    reader.close()
    return count


def test_progress_reaches_the_caller_and_the_last_of_it_comes_with_the_result(
    stepping: Task[[], str], start_worker: Workers, app: PulsarTasks, go_on: threading.Event
) -> None:
    start_worker(app)
    result = stepping.delay()

    wait_for_state(result, "PROGRESS")
    assert result.progress == (1, 3, "first")
    assert not result.ready()
    go_on.set()

    assert result.get(timeout=120) == "done"
    assert result.state == "SUCCESS"
    assert result.progress == (3, 3, "third")


def test_progress_is_found_from_another_process(
    stepping: Task[[], str],
    start_worker: Workers,
    app: PulsarTasks,
    go_on: threading.Event,
    broker: BrokerUnderTest,
    name: str,
    results: str,
) -> None:
    start_worker(app)
    task_id = stepping.delay().id
    elsewhere = PulsarTasks(name, broker.url, results=results)
    there = elsewhere.task(name="stepping", bind=True)(stepping.function).result(task_id)

    wait_for_state(there, "PROGRESS")
    assert there.progress == (1, 3, "first")
    go_on.set()
    wait_for_state(there, "SUCCESS")
    assert there.progress == (3, 3, "third")
    elsewhere.close()


def test_progress_that_arrives_after_the_result_is_of_no_account(
    stepping: Task[[], str], start_worker: Workers, app: PulsarTasks, go_on: threading.Event
) -> None:
    late: list[Reported] = []
    app.results.heard("")  # it listens

    def keep_for_later(self: Any, states: Sequence[Reported]) -> None:
        late.extend(states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(app.results), "report", keep_for_later)
        start_worker(app)
        result = stepping.delay()
        wait_until(lambda: bool(late), "nothing was told")
        go_on.set()
        wait_until(lambda: stepping.result(result.id).successful(), "no result")
    app.results.report(late)
    after = time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > after, "time stood still")

    assert result.state == "SUCCESS"
    assert stepping.result(result.id).state == "SUCCESS"


def test_much_progress_is_few_messages(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True)
    def count(self: TaskContext) -> int:
        for number in range(10_000):
            self.progress(number, 10_000)
        return 10_000

    start_worker(app)
    began = time.monotonic()
    result = count.delay()
    assert result.get(timeout=120) == 10_000
    took = time.monotonic() - began

    assert result.progress == (9_999, 10_000, "")
    assert reports(app) <= 1 + took / 0.5


def test_task_waits_for_no_broker_that_takes_no_progress(
    stepping: Task[[], str],
    start_worker: Workers,
    app: PulsarTasks,
    go_on: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = type(app.results).report
    broken = threading.Event()
    broken.set()

    def fail(self: Any, states: Sequence[Reported]) -> None:
        if broken.is_set():
            raise BrokerUnavailableError("away")
        report(self, states)

    monkeypatch.setattr(type(app.results), "report", fail)
    with capture_logs() as logs:
        start_worker(app)
        go_on.set()
        assert stepping.delay().get(timeout=120) == "done"
        go_on.clear()
        result = stepping.delay()
        wait_until(lambda: any(entry["event"] == "states.untold" for entry in logs), "it was told")
        broken.clear()
        wait_for_state(result, "PROGRESS")  # it is told later
        go_on.set()
        assert result.get(timeout=120) == "done"


def test_start_is_told_where_it_is_asked_for(app: PulsarTasks, start_worker: Workers, go_on: threading.Event) -> None:
    def wait() -> str:
        go_on.wait(60)
        return "done"

    tracked = app.task(name="tracked", track_started=True)(wait)
    untold = app.task(name="untold")(wait)
    start_worker(app)
    result, other = tracked.delay(), untold.delay()

    wait_for_state(result, "STARTED")
    assert tracked.result(result.id).state == "STARTED"
    assert result.info == {"pid": os.getpid(), "hostname": socket.gethostname()}
    assert other.state == "PENDING"
    go_on.set()
    assert (result.get(timeout=120), other.get(timeout=120)) == ("done", "done")
    assert tracked.result(result.id).state == "SUCCESS"


def test_tasks_that_do_not_ask_send_nothing_but_their_results(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True)
    def plain(self: TaskContext) -> int:
        return self.retries

    start_worker(app)

    assert plain.delay().get(timeout=120) == 0
    assert reports(app) == 0


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_retry_says_when_and_why(mode: str, app: PulsarTasks, start_worker: Workers) -> None:
    options: dict[str, object] = {"mode": mode, "max_retries": 1, "retry_jitter": False}
    ran: list[int] = []

    @app.task(autoretry_for=(OSError,), default_retry_delay=3.0, **options)  # type: ignore[call-overload, untyped-decorator]
    def fail_once() -> str:
        ran.append(1)
        if len(ran) == 1:
            raise ConnectionResetError(104, "gone")
        return "done"

    start_worker(app)
    began = datetime.now(timezone.utc)
    result: AsyncResult[str] = fail_once.using(key="a").delay()

    wait_for_state(result, "RETRY")
    attempt = result.next_attempt
    assert attempt is not None
    assert isinstance(attempt.error, ConnectionResetError)
    assert isinstance(result.info, ConnectionResetError)
    assert 3.0 <= (attempt.due - began).total_seconds() < 30
    assert result.get(timeout=120) == "done"
    assert result.next_attempt is None


def test_retry_is_told_though_it_came_while_the_start_was_being_sent(
    app: PulsarTasks, start_worker: Workers, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(track_started=True, max_retries=1, autoretry_for=(OSError,), default_retry_delay=3.0, retry_jitter=False)
    def fail_once() -> str:
        assert go_on.wait(60)
        raise ConnectionResetError(104, "gone")

    store = type(app.results)
    report = store.report

    def slowly(self: ResultStore, states: Sequence[Reported]) -> None:
        report(self, states)
        if any(each.state.state == "STARTED" for each in states):
            go_on.set()
            wait_until(lambda: any(entry["event"] == "message.retried" for entry in logs), "it was not tried again")

    with capture_logs() as logs:
        monkeypatch.setattr(store, "report", slowly)
        start_worker(app)
        result = fail_once.delay()

        wait_for_state(result, "RETRY")


def test_message_that_waits_for_its_key_is_received(
    app: PulsarTasks, start_worker: Workers, go_on: threading.Event
) -> None:
    @app.task(mode="key_shared", key=lambda: "same", track_started=True)
    def wait() -> str:
        go_on.wait(60)
        return "done"

    start_worker(app)
    first, second = wait.delay(), wait.delay()

    wait_for_state(first, "STARTED")
    wait_for_state(second, "RECEIVED")
    go_on.set()
    assert second.get(timeout=120) == "done"


def test_task_gives_itself_states_which_the_caller_is_told_one_by_one(
    app: PulsarTasks, start_worker: Workers, go_on: threading.Event
) -> None:
    listens = threading.Event()

    @app.task(bind=True)
    def hello(self: TaskContext, a: int, b: int) -> str:
        while not listens.wait(0.05):
            self.update_state(state="BEGINNING")
        for percent in (50, 90):
            self.update_state(state="PROGRESS", meta={"progress": percent})
        self.update_state(state="AT THE END")
        go_on.wait(60)
        return f"hello world: {a + b}"

    told: list[dict[str, Any]] = []

    def on_raw_message(body: dict[str, Any]) -> None:
        told.append(body)
        listens.set()
        if body["status"] == "AT THE END":
            go_on.set()

    start_worker(app)
    result = hello.apply_async(args=(1, 1))

    assert result.get(on_message=on_raw_message, propagate=False, timeout=60) == "hello world: 2"
    assert [(each["status"], each["result"]) for each in told[-4:]] == [
        ("PROGRESS", {"progress": 50}),
        ("PROGRESS", {"progress": 90}),
        ("AT THE END", None),
        ("SUCCESS", "hello world: 2"),
    ]
    assert {(each["task_id"], each["traceback"], len(each["children"])) for each in told} == {(result.id, None, 0)}
    assert (result.status, result.result, result.info) == ("SUCCESS", "hello world: 2", "hello world: 2")


def test_caller_that_listens_late_is_told_where_the_task_is(
    app: PulsarTasks, start_worker: Workers, go_on: threading.Event
) -> None:
    @app.task(bind=True)
    def hello(self: TaskContext) -> None:
        self.update_state(state="AT THE BEGINNING")
        self.update_state(state="NEAR THE END", meta={"left": 1})
        go_on.wait(60)

    told: list[tuple[str, Any]] = []

    def on_raw_message(body: dict[str, Any]) -> None:
        told.append((body["status"], body["result"]))
        go_on.set()

    start_worker(app)
    result = hello.delay()
    wait_until(
        lambda: (state := app.results.find_state(result.id)) is not None and state.state == "NEAR THE END",
        "the task did not say where it is",
    )

    result.get(on_message=on_raw_message, timeout=60)
    assert ("NEAR THE END", {"left": 1}) in told
    assert told[-1] == ("SUCCESS", None)


def test_state_of_its_own_is_found_from_elsewhere(
    app: PulsarTasks, start_worker: Workers, go_on: threading.Event
) -> None:
    @app.task(bind=True)
    def upload(self: TaskContext, total: int) -> None:
        self.update_state(state="UPLOADING", meta={"current": 3, "total": total})
        go_on.wait(60)

    start_worker(app)
    there = upload.result(upload.delay(7).id)

    wait_for_state(there, "UPLOADING")
    assert there.info == {"current": 3, "total": 7}
    with pytest.raises(InvalidArgumentsError, match="called elsewhere"):
        there.get(on_message=print)
    go_on.set()
    assert there.get(timeout=120) is None


def test_what_the_task_raised_is_given_back_where_it_is_not_to_propagate(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task
    def fail() -> int:
        raise LookupError("nowhere")

    told: list[dict[str, Any]] = []
    start_worker(app)
    result = fail.delay()

    assert isinstance(result.get(timeout=60, propagate=False, on_message=told.append), LookupError)
    assert (told[-1]["status"], str(told[-1]["result"])) == ("FAILURE", "nowhere")
    assert "LookupError" in told[-1]["traceback"]
    assert isinstance(result.info, LookupError)


@pytest.mark.parametrize(
    ("state", "meta"), [("SUCCESS", 1), ("", 1), ("X" * 2000, 1), ("HALF", "x" * 20_000), ("HALF", threading)]
)
def test_state_that_could_not_be_told_is_refused(state: str, meta: object, app: PulsarTasks) -> None:
    @app.task(bind=True)
    def tell(self: TaskContext) -> None:
        self.update_state(state=state, meta=meta)

    with pytest.raises((ValueError, TypeError), match=r"state|meta"):
        tell()


@pytest.mark.parametrize("numbers", [("many", None), (float("nan"), 3), (1, float("inf"))])
def test_progress_is_numbers(numbers: tuple[Any, Any], app: PulsarTasks) -> None:
    @app.task(bind=True)
    def tell(self: TaskContext) -> None:
        self.progress(*numbers)

    with pytest.raises(ValueError, match="give numbers"):
        tell()
