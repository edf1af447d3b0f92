"""Signals, as Celery's user guide describes them: who has connected is told, and can do no harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pulsartasks import ConfigurationError, PulsarTasks, Reject, TaskContext, TaskRevokedError
from pulsartasks.message import TASK, TASK_ID, Publication, Request
from pulsartasks.middleware.base import Execute, Middleware
from pulsartasks.outcome import Outcome
from tests.conformance.conftest import Workers
from tests.services import wait_until

Told = list[tuple[str, dict[str, Any]]]
OF_TASKS = (
    "task_prerun",
    "task_postrun",
    "task_success",
    "task_failure",
    "task_retry",
    "task_revoked",
    "task_unknown",
    "task_rejected",
)


def listen(app: PulsarTasks, *names: str) -> Told:
    """What the signals of these names tell from now on, in order."""
    told: Told = []

    def listen_to(name: str) -> Callable[..., None]:
        return lambda **arguments: told.append((name, arguments))

    for name in names:
        getattr(app.signals, name).connect(listen_to(name))
    return told


def of(told: Told, name: str) -> list[dict[str, Any]]:
    return [arguments for each, arguments in told if each == name]


def test_success_is_told_with_arguments_and_result_between_prerun_and_postrun(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task
    def add(x: int, *, y: int) -> int:
        return x + y

    told = listen(app, *OF_TASKS)
    start_worker(app)
    call = add.delay(2, y=3)
    assert call.get(timeout=120) == 5

    assert [name for name, _ in told] == ["task_prerun", "task_success", "task_postrun"]
    (prerun, success, postrun) = (arguments for _, arguments in told)
    assert (prerun["sender"], prerun["task"], prerun["task_id"]) == (add, add, call.id)
    assert (prerun["args"], prerun["kwargs"]) == ([2], {"y": 3})
    assert (success["sender"], success["result"], success["request"].id) == (add, 5, call.id)
    assert (postrun["sender"], postrun["retval"], postrun["state"], postrun["task_id"]) == (add, 5, "SUCCESS", call.id)


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_each_retry_is_told_with_its_reason_and_the_end_as_a_failure(
    app: PulsarTasks, start_worker: Workers, mode: Any
) -> None:
    def run() -> None:
        raise OSError("away")

    fail = app.task(name="fail", mode=mode, autoretry_for=(OSError,), max_retries=2, default_retry_delay=0.01)(run)
    told = listen(app, *OF_TASKS)
    start_worker(app)
    call = fail.delay()
    with pytest.raises(OSError, match="away"):
        call.get(timeout=120)

    retry = ["task_prerun", "task_retry", "task_postrun"]
    assert [name for name, _ in told] == [*retry, *retry, "task_prerun", "task_failure", "task_postrun"]
    assert [(each["request"].retries, str(each["reason"])) for each in of(told, "task_retry")] == [
        (0, "away"),
        (1, "away"),
    ]
    [failure] = of(told, "task_failure")
    assert (failure["task_id"], str(failure["exception"]), list(failure["args"])) == (call.id, "away", [])
    assert failure["traceback"] is not None
    assert [each["state"] for each in of(told, "task_postrun")] == ["RETRY", "RETRY", "FAILURE"]


def test_task_that_is_rejected_by_itself_has_failed(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def refuse() -> None:
        raise Reject("no such job")

    told = listen(app, "task_failure")
    start_worker(app)
    with pytest.raises(Reject):
        refuse.delay().get(timeout=120)

    assert isinstance(of(told, "task_failure")[0]["exception"], Reject)


def test_what_goes_wrong_around_a_task_is_told_as_an_internal_error(app: PulsarTasks, start_worker: Workers) -> None:
    class Broken(Middleware):
        def execute(self, request: Request, call_next: Execute) -> Outcome:
            call_next(request)
            raise LookupError("around it")

    app.middleware = (Broken(),)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    told = listen(app, "task_internal_error", "task_failure")
    start_worker(app)
    call = add.delay(2, y=3)
    with pytest.raises(LookupError):
        call.get(timeout=120)

    assert [name for name, _ in told] == ["task_internal_error", "task_failure"]
    [error] = of(told, "task_internal_error")
    assert (error["sender"], error["task_id"], error["args"], error["kwargs"]) == (add, call.id, [2], {"y": 3})
    assert (error["request"]["id"], str(error["exception"])) == (call.id, "around it")
    assert error["traceback"] is not None
    assert "around it" in error["einfo"].traceback


@pytest.mark.guarantee(12)
def test_revoked_and_expired_calls_are_told_and_have_no_prerun(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def note() -> None:
        """Never runs."""

    told = listen(app, *OF_TASKS)
    revoked, expired = note.delay(), note.using(expires=0).delay()
    revoked.revoke()
    start_worker(app)
    for call in (revoked, expired):
        with pytest.raises(TaskRevokedError):
            call.get(timeout=120)

    assert {name for name, _ in told} == {"task_revoked"}
    ends = {each["request"].id: (each["terminated"], each["expired"]) for each in of(told, "task_revoked")}
    assert ends == {revoked.id: (False, False), expired.id: (False, True)}


def test_terminated_task_is_told_as_that(app: PulsarTasks, start_worker: Workers) -> None:
    began: list[int] = []

    @app.task
    def spin() -> None:
        began.append(1)
        wait_until(lambda: False, "it was not terminated", 30)

    told = listen(app, *OF_TASKS)
    start_worker(app)
    call = spin.delay()
    wait_until(lambda: bool(began), "it did not begin")
    call.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        call.get(timeout=120)

    assert [name for name, _ in told] == ["task_prerun", "task_revoked", "task_postrun"]
    assert of(told, "task_revoked")[0]["terminated"]


@pytest.mark.guarantee(4)
def test_what_no_task_is_for_and_what_cannot_be_read_is_told(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def add(x: int) -> int:
        return x

    told = listen(app, *OF_TASKS)
    start_worker(app)
    app.publish(Publication(add.topics.calls, b'{"args":[],"kwargs":{}}', properties={TASK: "gone", TASK_ID: "one"}))
    app.publish(Publication(add.topics.calls, b"no JSON", properties={TASK: "add", TASK_ID: "two"}))
    wait_until(lambda: len(told) >= 2, "it was not told")

    [unknown] = of(told, "task_unknown")
    [rejected] = of(told, "task_rejected")
    assert (unknown["sender"], unknown["name"], unknown["id"]) == ("gone", "gone", "one")
    assert "no task 'gone'" in str(unknown["exc"])
    assert rejected["sender"] is add
    assert rejected["message"].value == b"no JSON"
    assert "not a call" in str(rejected["exc"])


def test_calls_are_told_before_and_after_they_are_published_and_may_get_headers(
    app: PulsarTasks, start_worker: Workers
) -> None:
    happened = app.topic("happened", schema=int, subscriptions=("a",))

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.01)
    def greet(self: TaskContext, name: str, *, loud: bool = False) -> str | None:
        if self.retries == 0:
            raise OSError
        return self.request.headers.get("trace")

    @app.signals.before_task_publish.connect
    def trace(headers: dict[str, str], **_: Any) -> None:
        headers["trace"] = "t-1"

    told = listen(app, "before_task_publish", "after_task_publish")
    start_worker(app)
    happened.publish(7)  # no call
    call = greet.delay("Ada", loud=True)

    assert call.get(timeout=120) == "t-1"
    assert [name for name, _ in told] == ["before_task_publish", "after_task_publish"]  # the retry is not sent anew
    for _, arguments in told:
        assert (arguments["sender"], arguments["task_id"]) == ("greet", call.id)
        assert arguments["body"] == {"args": ["Ada"], "kwargs": {"loud": True}}
        assert arguments["headers"]["trace"] == "t-1"
        assert arguments["routing_key"] == greet.topics.calls


@pytest.mark.guarantee(2)
def test_receiver_that_raises_is_logged_and_changes_nothing(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    def broken(**_: Any) -> None:
        raise ZeroDivisionError

    def leaving(**_: Any) -> None:
        raise SystemExit

    for name in ("before_task_publish", "after_task_publish", *OF_TASKS):
        getattr(app.signals, name).connect(broken)
    app.signals.task_prerun.connect(leaving)
    told = listen(app, "task_success")
    with capture_logs() as logs:
        worker = start_worker(app)
        assert [add.delay(number, 1).get(timeout=120) for number in range(3)] == [1, 2, 3]
        worker.stop()

    assert len(told) == 3
    failed = Counter(entry["signal"] for entry in logs if entry["event"] == "signal.failed")
    told_thrice = ("before_task_publish", "after_task_publish", "task_success", "task_postrun")
    assert failed == {**dict.fromkeys(told_thrice, 3), "task_prerun": 6}


def test_receiver_hears_of_the_sender_it_asked_for_once_and_until_it_is_disconnected(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task
    def one() -> None: ...

    @app.task
    def two() -> None: ...

    heard: list[str] = []

    @app.signals.task_success.connect(sender=one)
    def of_one(sender: Any, **_: Any) -> None:
        heard.append(f"one by {sender.name}")

    @app.signals.task_success.connect(sender="two")
    def of_two(sender: Any, **_: Any) -> None:
        heard.append(f"two by {sender.name}")

    app.signals.task_success.connect(of_one, sender=one.using(key="k"))  # the same task: no second time
    start_worker(app)
    for task in (one, two):
        task.delay().get(timeout=120)
    assert heard == ["one by one", "two by two"]

    assert app.signals.task_success.disconnect(of_two, sender=two)
    assert not app.signals.task_success.disconnect(of_two)
    two.delay().get(timeout=120)
    assert heard == ["one by one", "two by two"]


def test_worker_tells_of_its_life(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def note() -> None: ...

    told = listen(app, "worker_init", "worker_ready", "worker_shutting_down", "worker_shutdown")
    worker = start_worker(app)
    wait_until(lambda: bool(of(told, "worker_ready")), "it was not told that the worker is ready")
    worker.stop()

    assert [name for name, _ in told] == ["worker_init", "worker_ready", "worker_shutting_down", "worker_shutdown"]
    assert all(arguments["sender"] is worker for _, arguments in told)


async def _async(**_: Any) -> None: ...


@pytest.mark.parametrize("receiver", [lambda sender: None, _async, "no function"])
def test_receiver_that_could_not_be_called_is_refused(receiver: Any) -> None:
    app = PulsarTasks("shop", "memory://")

    with pytest.raises(ConfigurationError, match="signal task_success"):
        app.signals.task_success.connect(receiver)


def test_signal_that_there_is_not_is_said_with_the_nearest() -> None:
    signals = PulsarTasks("shop", "memory://").signals

    with pytest.raises(AttributeError, match="did you mean 'task_success'"):
        signals.task_succes.connect(print)
    with pytest.raises(AttributeError, match="known are: before_task_publish"):
        signals.user_preload_options  # noqa: B018 - asking for it is the test
