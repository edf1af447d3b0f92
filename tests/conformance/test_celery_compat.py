"""What Celery's user guide says of calls, canvas, results, retries and signals, where no other test shows it.

The snippets follow the guide's own, line by line where that goes. `docs/coming-from-celery.md` says for each documented
option which test shows it, here or elsewhere.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from io import StringIO
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from pulsartasks import (
    AsyncResult,
    ChordError,
    ConfigurationError,
    Failure,
    GroupResult,
    Ignore,
    IncompleteStream,
    InvalidArgumentsError,
    MaxRetriesExceededError,
    PulsarTasks,
    PulsarTasksError,
    Reject,
    ResultTimeoutError,
    Retry,
    TaskContext,
    TaskRevokedError,
    chain,
    chord,
    group,
)
from pulsartasks.dead_letters import DeadLetters
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import free_ports, wait_until

PATIENCE = 90.0


@dataclass
class Proj:
    """The guide's ``proj``."""

    app: PulsarTasks
    seen: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        app, seen = self.app, self.seen

        @app.task
        def add(x: int, y: int, *, debug: bool = False) -> int:
            if debug:
                seen.append("debug")
            return x + y

        @app.task
        def mul(x: int, y: int) -> int:
            return x * y

        @app.task
        def tsum(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task
        def reset_buffers() -> str:
            seen.append("reset")
            return "done"

        @app.task
        def raising_task() -> None:
            raise ValueError("something something")

        self.add, self.mul, self.tsum = add, mul, tsum
        self.reset_buffers, self.raising_task = reset_buffers, raising_task


@pytest.fixture
def idle(app: PulsarTasks) -> Proj:
    """Without a worker."""
    return Proj(app)


@pytest.fixture
def proj(idle: Proj, start_worker: Workers) -> Proj:
    """With one."""
    start_worker(idle.app)
    return idle


# Calling


def test_delay_and_apply_async_are_two_ways_to_say_the_same(proj: Proj) -> None:
    calls = [
        proj.add.delay(2, y=2),
        proj.add.apply_async((2,), {"y": 2}),
        proj.add.apply_async(args=[2, 2], kwargs={"debug": True}),
        proj.add.apply_async(None, {"x": 2, "y": 2}),
        proj.add.s(2, 2).apply_async(),
        proj.add.s(2, 2, debug=True).delay(),
    ]

    assert [call.get(PATIENCE) for call in calls] == [4] * 6
    assert proj.seen == ["debug", "debug"]


def test_countdown_takes_at_least_so_long_and_eta_is_the_same_as_an_instant(proj: Proj) -> None:
    began = time.time()
    in_a_second = datetime.now(timezone.utc) + timedelta(seconds=1)
    calls = [
        proj.add.apply_async((2, 2), countdown=1),
        proj.add.apply_async((2, 2), eta=in_a_second),
        proj.add.starmap([(2, 2)]).apply_async(countdown=1),
    ]

    assert [call.get(PATIENCE) for call in calls] == [4, 4, [4]]
    assert time.time() - began >= 1


@pytest.mark.guarantee(12)
def test_call_that_has_expired_is_revoked(idle: Proj, start_worker: Workers) -> None:
    expired = [
        idle.add.apply_async((10, 10), expires=0.1),
        idle.add.apply_async((10, 10), expires=datetime.now(timezone.utc) + timedelta(seconds=0.1)),
    ]
    in_time = idle.add.apply_async((10, 10), expires=datetime.now(timezone.utc) + timedelta(days=1))
    late = time.time() + 0.2
    wait_until(lambda: time.time() > late, "time stood still")
    start_worker(idle.app)

    assert in_time.get(PATIENCE) == 20
    for call in expired:
        with pytest.raises(TaskRevokedError):
            call.get(PATIENCE)
        assert call.state == "REVOKED"


def test_call_has_the_id_and_the_headers_that_it_was_given(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True)
    def dump_context(self: TaskContext, x: int) -> list[Any]:
        return [self.request.id, list(self.request.args), self.request.headers["periodic_task_name"]]

    start_worker(app)
    call = dump_context.apply_async((1,), task_id="my_own_task_id", headers={"periodic_task_name": "task_name"})

    assert call.get(PATIENCE) == [call.id, [1], "task_name"]
    assert call.id == "my_own_task_id"


def test_links_are_called_with_the_result_of_their_parent(proj: Proj) -> None:
    call = proj.add.apply_async((2, 2), link=[proj.add.s(16), proj.mul.s(16), proj.reset_buffers.si()])

    assert call.get(PATIENCE) == 4
    assert [child.get(PATIENCE) for child in call.children] == [20, 64, "done"]
    [immutable] = proj.add.apply_async((2, 2), link=proj.reset_buffers.signature(immutable=True)).children
    assert immutable.get(PATIENCE) == "done"


def test_every_errback_is_called_when_the_task_fails_and_no_callback(idle: Proj, start_worker: Workers) -> None:
    @idle.app.task
    def error_handler(failure: Failure, label: str) -> None:
        idle.seen.append((failure.id, label, type(failure.restore())))

    start_worker(idle.app)
    errbacks = [error_handler.s("first"), error_handler.s("second")]
    start = idle.raising_task.apply_async((), link=idle.reset_buffers.si(), link_error=errbacks)
    wait_until(lambda: len(idle.seen) == 2, "not every errback was called")

    assert sorted(idle.seen) == [(start.id, "first", ValueError), (start.id, "second", ValueError)]


def test_errback_of_three_parameters_gets_request_exception_and_traceback(idle: Proj, start_worker: Workers) -> None:
    @idle.app.task
    def error_handler(request, exc, traceback):  # type: ignore[no-untyped-def]
        idle.seen.append((request.id, type(exc), str(exc), traceback))

    start_worker(idle.app)
    call = idle.raising_task.apply_async((), link_error=error_handler.s())
    wait_until(lambda: len(idle.seen) == 1, "the errback was not called")
    [(id_, kind, message, traceback)] = idle.seen
    assert (id_, kind, message) == (call.id, ValueError, "something something")
    assert "raise ValueError" in traceback
    idle.seen.clear()

    body = idle.tsum.s().on_error(error_handler.s())
    result = (group([idle.add.s(1, 1), idle.raising_task.s()]) | body).delay()
    wait_until(lambda: len(idle.seen) == 1, "the errback of the chord was not called")
    assert isinstance(result.parent, GroupResult)
    assert idle.seen[0][:2] == (result.parent[1].id, ValueError)

    error_handler(call, KeyError("here"), "none")  # the plain function
    assert idle.seen[1] == (call.id, KeyError, "'here'", "none")


@pytest.mark.guarantee(11)
def test_call_that_cannot_be_sent_raises_operational_error(broker: BrokerUnderTest, name: str) -> None:
    away = {
        "local": "local:///proc/nobody/can/write/here/broker.db",
        "pulsar": f"pulsar://127.0.0.1:{free_ports(1)[0]}?operation_timeout=1",
    }
    app = PulsarTasks(name, away[broker.name])

    @app.task(ignore_result=True)
    def add(x: int, y: int) -> int:
        return x + y

    with pytest.raises(add.OperationalError):
        add.delay(2, 2)
    app.close()


@pytest.mark.guarantee(8)
def test_task_is_called_by_its_name_though_its_code_is_elsewhere(
    broker: BrokerUnderTest, app: PulsarTasks, name: str, start_worker: Workers
) -> None:
    caller = PulsarTasks(name, broker.url)  # another process, say: it defines no task
    sent = caller.send_task("add", (2, 2))
    signature = caller.signature("add", args=(2, 2), countdown=0.1)
    assert repr(signature) == "add(2, 2)"
    chained = (signature | caller.signature("add", (10,))).delay()

    start_worker(Proj(app).app)  # only now

    assert (sent.get(PATIENCE), chained.get(PATIENCE)) == (4, 14)
    wrong = caller.send_task("add", ("two", 2))
    with pytest.raises(PulsarTasksError, match="Expected `int`"):
        wrong.get(PATIENCE)
    assert caller.send_task("add", (2, 2), task_id="mine").id == "mine"
    caller.close()


@pytest.mark.guarantee(8)
def test_named_task_of_another_topic_and_subscription_waits_there(
    broker: BrokerUnderTest, app: PulsarTasks, name: str, start_worker: Workers
) -> None:
    caller = PulsarTasks(name, broker.url)
    sent = caller.send_task("pay", (7,), topic="payments", subscription="billing")

    @app.task(topic="payments", subscription="billing")
    def pay(amount: int) -> int:
        return amount

    start_worker(app)
    assert sent.get(PATIENCE) == 7
    caller.close()


@pytest.mark.guarantee(13)
def test_result_is_kept_or_not_as_the_call_says(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(ignore_result=True)
    def quiet(x: int) -> int:
        return x

    start_worker(app)
    ignored = add.apply_async((1, 2), ignore_result=True)
    assert add.apply_async((1, 2), ignore_result=False).get(PATIENCE) == 3
    kept = quiet.using(ignore_result=False).delay(7)

    assert kept.get(PATIENCE) == 7
    assert quiet.using(ignore_result=False).result(kept.id).get(PATIENCE) == 7
    with pytest.raises(PulsarTasksError, match="keeps no results"):
        ignored.get(PATIENCE)
    assert add.result(ignored.id).state == "PENDING"
    assert (add.using(ignore_result=True).s(1, 2) | add.s(3)).delay().get(PATIENCE) == 6


def test_extended_result_tells_of_its_call_and_where_it_ran(
    broker: BrokerUnderTest, name: str, results: str, start_worker: Workers
) -> None:
    app = PulsarTasks(name, broker.url, results=results, result_extended=True)

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.05)
    def divide(self: TaskContext, x: int, y: int, *, notes: list[Any] | None = None) -> float:
        if self.retries == 0:
            raise OSError("not yet")
        if notes == ["spoil this"]:
            notes.append(object())
        return x / y

    start_worker(app)
    ended, failed = divide.delay(2, y=2), divide.apply_async((2,), {"y": 0})
    unkept = [divide.delay(2, 2, notes=["x" * 20_000]), divide.delay(2, 2, notes=["spoil this"])]
    assert ended.get(PATIENCE) == 1
    with pytest.raises(ZeroDivisionError):
        failed.get(PATIENCE)

    for call in (ended, divide.result(ended.id)):
        assert (call.name, call.args, call.kwargs, call.retries) == ("divide", [2], {"y": 2}, 1)
        assert (call.worker, call.queue) == (f"{socket.gethostname()}:{os.getpid()}", divide.topics.calls)
    assert (failed.args, failed.kwargs, failed.worker) == ([2], {"y": 0}, ended.worker)
    for call in unkept:  # too much, and what is no JSON any more, harms nobody
        assert (call.get(PATIENCE), call.args, call.kwargs, call.worker) == (1, None, None, ended.worker)
    app.result_extended = False
    plain = divide.delay(3, 3)
    assert (plain.get(PATIENCE), plain.retries) == (1, 1)
    assert (plain.args, plain.kwargs, plain.worker, plain.queue) == (None, None, None, None)
    app.close()


# Canvas


def test_signature_tells_its_fields_and_merges_what_is_added(proj: Proj) -> None:
    signature = proj.add.signature((2, 2), {"debug": True}, countdown=10)
    assert (signature.args, signature.kwargs, signature.options) == ((2, 2), {"debug": True}, {"countdown": 10})
    assert str(proj.add.s(2, 2)).endswith("add(2, 2)")

    assert signature.apply_async(countdown=0).get(PATIENCE) == 4
    assert proj.add.s(2, 2).set(countdown=0.1).delay().get(PATIENCE) == 4
    clone = proj.add.s(2).clone(args=(4,), kwargs={"debug": True})
    assert (clone.args, clone.kwargs, clone.delay().get(PATIENCE)) == ((4, 2), {"debug": True}, 6)
    assert ~proj.add.s(2, 2) == 4
    assert ~group(proj.add.s(2, 2), proj.add.s(4, 4)) == [4, 8]


def test_canvases_of_the_guide_give_what_it_says(proj: Proj) -> None:
    add, mul, tsum = proj.add, proj.mul, proj.tsum
    independent = (add.si(2, 2) | add.si(4, 4) | add.si(8, 8))()
    upgraded = (group(add.s(i, i) for i in range(10)) | tsum.s())()
    not_forwarded = (add.s(4, 4) | group(add.si(i, i) for i in range(10)))()

    assert chain(add.s(2, 2), add.s(4), add.s(8))().get(PATIENCE) == 16
    assert independent.get(PATIENCE) == 16
    assert independent.parent is not None
    assert independent.parent.get(PATIENCE) == 8
    assert (add.s(4) | mul.s(8))(16).get(PATIENCE) == 160
    assert (add.s(4, 16) | mul.s(2) | (add.s(4) | mul.s(8)))().get(PATIENCE) == 352
    assert upgraded.get(PATIENCE) == 90
    assert not_forwarded.get(PATIENCE) == [2 * i for i in range(10)]
    assert chord([add.s(i, i) for i in range(10)])(tsum.s()).get(PATIENCE) == 90
    assert chord([add.s(1, 1)], proj.reset_buffers.si())().get(PATIENCE) == "done"


def test_results_of_what_is_linked_are_collected_with_their_handles(proj: Proj) -> None:
    first = proj.add.s(2, 2)
    first.link(proj.mul.s(16))
    call = first.apply_async()
    [child] = call.children
    assert child.get(PATIENCE) == 64
    assert list(call.collect()) == [(call, 4), (child, 64)]


def test_what_has_not_ended_is_no_stream_unless_it_may_be_incomplete(idle: Proj, start_worker: Workers) -> None:
    go = threading.Event()

    @idle.app.task
    def wait(x: int) -> int:
        return x if go.wait(PATIENCE) else -1

    start_worker(idle.app)
    call = idle.add.apply_async((2, 2), link=wait.s())
    assert call.get(PATIENCE) == 4

    with pytest.raises(IncompleteStream):
        list(call.collect())
    assert list(call.collect(intermediate=True)) == [(call, 4)]
    go.set()
    assert call.children[0].get(PATIENCE) == 4
    assert len(list(call.collect())) == 2


def test_group_passes_its_callback_to_each_part_and_errbacks_are_added_by_on_error(
    idle: Proj, start_worker: Workers
) -> None:
    @idle.app.task
    def log_error(failure: Failure) -> None:
        idle.seen.append(failure.message)

    start_worker(idle.app)
    parts = group(idle.add.s(2, 2), idle.add.s(4, 4))
    parts.link(idle.mul.s(10))
    result = parts()
    assert result.get(PATIENCE) == [4, 8]
    assert [part.children[0].get(PATIENCE) for part in result] == [40, 80]  # not the list of them

    call = idle.raising_task.s().on_error(log_error.s()).delay()
    with pytest.raises(ValueError, match="something"):
        call.get(PATIENCE)
    wait_until(lambda: idle.seen == ["something something"], "the errback was not called")


def test_result_of_a_chord_is_its_callbacks_and_names_the_part_that_failed(proj: Proj) -> None:
    body = proj.tsum.signature(task_id="body")
    assert chord([proj.add.s(1, 1)], body).delay().id == "body"

    result = chord([proj.add.s(4, 4), proj.raising_task.s(), proj.add.s(8, 8)], proj.tsum.s())()
    with pytest.raises(ChordError, match="raised ValueError: something something") as raised:
        result.get(PATIENCE)
    assert isinstance(result.parent, GroupResult)
    assert result.parent[1].id in str(raised.value)
    assert (result.parent[2].get(PATIENCE), result.state) == (16, "FAILURE")
    assert "raise ValueError" in (result.traceback or "")


def test_group_result_answers_for_all_of_its_parts(idle: Proj, start_worker: Workers) -> None:
    job = group([idle.add.s(2, 2), idle.add.s(4, 4), idle.raising_task.s()])
    result = job.apply_async()
    assert (result.ready(), result.waiting(), result.completed_count()) == (False, True, 0)

    start_worker(idle.app)
    with pytest.raises(ValueError, match="something something"):
        result.join(PATIENCE)
    wait_until(result.ready, "not all ended")
    assert (result.successful(), result.failed(), result.waiting(), result.completed_count()) == (
        False,
        True,
        False,
        2,
    )
    assert isinstance(result, GroupResult)
    assert isinstance(result[0], AsyncResult)


@pytest.mark.guarantee(12)
def test_group_is_revoked_as_a_whole(idle: Proj, start_worker: Workers) -> None:
    result = group(idle.add.s(2, 2), idle.add.s(4, 4)).delay()
    result.revoke()
    start_worker(idle.app)

    for part in result:
        with pytest.raises(TaskRevokedError):
            part.get(PATIENCE)


# Retries and the end of a task


@pytest.mark.guarantee(3)
def test_exception_of_the_task_is_raised_when_no_retry_is_left_and_without_one_it_is_said_so(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(bind=True, max_retries=1)
    def with_exc(self: TaskContext) -> None:
        try:
            raise ConnectionError("fail whale")
        except ConnectionError as exc:
            raise self.retry(exc=exc, countdown=0)  # noqa: B904 - as the guide writes it

    @app.task(bind=True, max_retries=1)
    def without(self: TaskContext) -> None:
        raise self.retry(countdown=0)

    @app.task(bind=True, max_retries=0, default_retry_delay=3600)
    def more(self: TaskContext) -> int:
        return self.retries if self.retries == 2 else self.retry(max_retries=2, countdown=0)

    start_worker(app)
    with pytest.raises(ConnectionError, match="fail whale"):
        with_exc.delay().get(PATIENCE)
    with pytest.raises(MaxRetriesExceededError):
        without.delay().get(PATIENCE)
    assert more.delay().get(PATIENCE) == 2


def test_graph_of_a_call_has_what_follows_it_and_can_be_drawn(app: PulsarTasks) -> None:
    proj = Proj(app)
    res = chain(proj.add.s(4, 4), proj.mul.s(8), proj.mul.s(10))()
    assert isinstance(res.parent, AsyncResult)
    assert isinstance(res.parent.parent, AsyncResult)
    first, second, third = res.parent.parent.id, res.parent.id, res.id

    graph = res.parent.parent.graph
    assert repr(graph).splitlines() == [
        f"{second}(1)",
        f"    {third}(0)",
        f"{first}(2)",
        f"    {second}(1)",
        f"        {third}(0)",
    ]
    graph.to_dot(drawn := StringIO())
    lines = ["digraph {", f'    "{second}" -> "{third}";', f'    "{first}" -> "{second}";', "}"]
    assert drawn.getvalue().splitlines() == lines

    parts = proj.add.apply_async((2, 2), link=group(proj.add.s(1), proj.add.s(2)))
    assert repr(parts.graph).count("<GroupResult of 2>(2)") == 2


def test_retry_that_is_not_thrown_lets_the_function_go_on_and_begins_after_its_end(
    app: PulsarTasks, start_worker: Workers
) -> None:
    seen: list[str] = []

    @app.task(bind=True)
    def goes_on(self: TaskContext) -> str:
        seen.append(f"began {self.retries}")
        if self.retries == 0:
            seen.append(type(self.retry(countdown=0, throw=False)).__name__)
        seen.append(f"ended {self.retries}")
        return f"attempt {self.retries}"

    @app.task(bind=True, max_retries=0)
    def has_none_left(self: TaskContext) -> None:
        self.retry(throw=False)

    start_worker(app)
    assert goes_on.delay().get(PATIENCE) == "attempt 1"
    assert seen == ["began 0", "Retry", "ended 0", "began 1", "ended 1"]
    with pytest.raises(MaxRetriesExceededError):
        has_none_left.delay().get(PATIENCE)


def test_retry_kwargs_are_those_of_the_retry_that_comes_by_itself(app: PulsarTasks, start_worker: Workers) -> None:
    ran: list[int] = []

    @app.task(autoretry_for=(OSError,), retry_kwargs={"max_retries": 5, "countdown": 0})
    def refresh_timeline(user: str) -> None:
        ran.append(len(ran))
        raise ConnectionError(f"fail whale of {user}")

    start_worker(app)
    with pytest.raises(ConnectionError, match="of ada"):
        refresh_timeline.delay("ada").get(PATIENCE)
    assert len(ran) == 6
    with pytest.raises(ConfigurationError, match="did you mean 'max_retries'"):
        app.task(name="wrong", retry_kwargs={"max_retry": 5})(len)


def test_retry_is_what_is_raised_and_the_name_is_the_one_given(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(name="sum-of-two-numbers", bind=True)
    def add(self: TaskContext, x: int, y: int) -> int:
        if self.retries == 0:
            try:
                self.retry(countdown=0)
            except Retry:  # the guide: code after the call is not reached
                assert self.request.task == add.name == "sum-of-two-numbers"
                raise
        return x + y

    start_worker(app)
    assert add.delay(2, 2).get(PATIENCE) == 4
    assert app.tasks["sum-of-two-numbers"] is add


@pytest.mark.guarantee(3)
def test_request_of_a_retry_is_the_same_but_for_its_count(app: PulsarTasks, start_worker: Workers) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def dump_context(self: TaskContext, x: int, *, y: int) -> None:
        request = self.request
        seen.append((request.id, request.retries, list(request.args), request.kwargs, request.called_directly))
        if self.retries < 1:
            raise self.retry(countdown=0)
        seen.append(self.request.headers["colour"])

    start_worker(app)
    call = dump_context.apply_async((1,), {"y": 2}, headers={"colour": "red"})
    assert call.get(PATIENCE) is None
    assert seen == [(call.id, 0, [1], {"y": 2}, False), (call.id, 1, [1], {"y": 2}, False), "red"]


@pytest.mark.guarantee(4)
def test_exception_that_is_expected_is_a_failure_that_is_logged_as_information(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(throws=(KeyError,))
    def get_foo(name: str) -> None:
        raise KeyError(name) if name == "foo" else ValueError(name)

    start_worker(app)
    with capture_logs() as logs:
        for name, kind in (("foo", KeyError), ("bar", ValueError)):
            call = get_foo.delay(name)
            with pytest.raises(kind, match=name):
                call.get(PATIENCE)
            assert call.state == "FAILURE"
        wait_until(lambda: len([e for e in logs if e["event"] == "message.died"]) == 2, "it was not logged")

    levels = {entry["error"]: (entry["log_level"], "exc_info" in entry) for entry in logs if "died" in entry["event"]}
    assert levels == {"KeyError('foo')": ("info", False), "ValueError('bar')": ("error", True)}
    assert len(list(DeadLetters(app, get_foo).list())) == 2


@pytest.mark.guarantee(2)
def test_ignored_task_is_acknowledged_and_leaves_no_state(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    seen: list[str] = []

    @app.task(autoretry_for=(Exception,))
    def some_task() -> None:
        seen.append("ran")
        raise Ignore

    told: list[str] = []

    @app.signals.task_postrun.connect
    def note(state: str, **_: Any) -> None:
        told.append(state)

    start_worker(app)
    call = some_task.delay()
    wait_until(lambda: broker.backlog(some_task.topics.calls, app.name) == 0 and bool(seen), "it is not acknowledged")

    with pytest.raises(ResultTimeoutError):
        call.get(0.1)
    assert (call.state, seen, told) == ("PENDING", ["ran"], ["IGNORED"])
    assert not list(DeadLetters(app, some_task).list())


def test_requeued_message_is_run_again_and_has_no_result_until_then(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, max_retries=0)
    def requeues(self: TaskContext) -> str:
        if self.retries < 2:
            raise Reject("no reason", requeue=True)
        return f"received {self.retries + 1} times as {self.id}"

    start_worker(app)
    call = requeues.delay()
    assert call.get(PATIENCE) == f"received 3 times as {call.id}"


# Rate limits


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_rate_limit_spreads_runs_evenly_and_holds_up_no_other_task(
    mode: Any, app: PulsarTasks, start_worker: Workers
) -> None:
    began: list[float] = []

    @app.task(name="limited", mode=mode, key=str, rate_limit="2/s")
    def limited(number: int) -> None:
        began.append(time.monotonic())

    @app.task
    def other() -> float:
        return time.monotonic()

    calls = [limited.delay(number) for number in range(5)]
    others = [other.delay() for _ in range(20)]
    start_worker(app)
    for call in calls:
        call.get(PATIENCE)

    gaps = [after - before for before, after in pairwise(began)]
    assert len(gaps) == 4
    # A run begins a moment after its turn, so two may be nearer to each other than their turns.
    assert min(gaps) > 0.15
    assert began[-1] - began[0] > 1.5
    assert all(call.get(PATIENCE) < began[-1] for call in others)


@pytest.mark.guarantee(9)
@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_what_waits_for_its_turn_goes_to_another_worker_when_this_one_stops(
    mode: Any, app: PulsarTasks, broker: BrokerUnderTest, name: str, start_worker: Workers
) -> None:
    def define(app: PulsarTasks, rate: str) -> Any:
        return app.task(name="limited", mode=mode, key=str, rate_limit=rate)(_same)

    slow = define(app, "1/h")
    calls = [slow.delay(number) for number in range(3)]
    worker = start_worker(app)
    wait_until(lambda: any(call.ready() for call in calls), "none ran")
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 10
    assert sum(call.ready() for call in calls) == 1

    faster = PulsarTasks(name, broker.url)
    define(faster, "50/s")
    start_worker(faster)
    assert [call.get(PATIENCE) for call in calls] == [0, 1, 2]
    faster.close()


def _same(number: int) -> int:
    return number


def test_error_is_stored_though_the_result_is_ignored_and_a_success_is_not(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(ignore_result=True, store_errors_even_if_ignored=True)
    def divide(x: int, y: int) -> float:
        return x / y

    start_worker(app)
    succeeded, failed = divide.delay(4, 2), divide.delay(4, 0)
    with pytest.raises(ZeroDivisionError):
        failed.get(PATIENCE)
    wait_until(lambda: broker.backlog(divide.topics.work, divide.subscription) == 0, "not both were settled")

    for call in (failed, divide.result(failed.id)):
        assert call.state == "FAILURE"
        assert "return x / y" in (call.traceback or "")
    for call in (succeeded, divide.result(succeeded.id)):
        assert call.state == "PENDING"
        with pytest.raises(InvalidArgumentsError, match="has ignore_result=True, so its result may never come"):
            call.get()
    steps = (divide.s(4, 0) | divide.s(2)).delay()
    with pytest.raises(ZeroDivisionError):
        steps.get(PATIENCE)


# Signals


def test_received_is_told_before_prerun_and_failures_have_einfo(app: PulsarTasks, start_worker: Workers) -> None:
    told: list[tuple[str, Any]] = []

    @app.task(autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.0)
    def fail() -> None:
        raise OSError("away")

    app.signals.task_received.connect(lambda sender, request, **_: told.append(("received", (sender, request.id))))
    app.signals.task_prerun.connect(lambda **_: told.append(("prerun", None)))
    app.signals.task_retry.connect(lambda einfo, **_: told.append(("retry", einfo)))
    app.signals.task_failure.connect(lambda einfo, **_: told.append(("failure", einfo)))
    start_worker(app)
    call = fail.delay()
    with pytest.raises(OSError, match="away"):
        call.get(PATIENCE)

    assert [name for name, _ in told] == ["received", "prerun", "retry", "received", "prerun", "failure"]
    assert told[0][1] == (fail, call.id)
    for einfo in (told[2][1], told[5][1]):
        assert (einfo.type, str(einfo.exception)) == (OSError, "away")
        assert 'raise OSError("away")' in einfo.traceback


def test_revoked_call_is_told_with_the_guides_arguments(idle: Proj, start_worker: Workers) -> None:
    told: list[dict[str, Any]] = []
    idle.app.signals.task_revoked.connect(lambda **given: told.append(given))
    call = idle.add.delay(2, 2)
    call.revoke()
    start_worker(idle.app)
    with pytest.raises(TaskRevokedError):
        call.get(PATIENCE)

    assert told[0]["request"].id == call.id
    assert (told[0]["terminated"], told[0]["signum"], told[0]["expired"]) == (False, None, False)
