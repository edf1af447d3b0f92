"""Guarantee 13: results are pushed to the caller, kept without a database, and confirmed before the ack."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks, PulsarTasksError, ResultTimeoutError, TaskError, UnreadableMessageError
from pulsartasks.message import TASK_ID, new_task_id
from pulsartasks.results.base import PackedResult, Result
from pulsartasks.task import Task
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(13)


class Transcript(msgspec.Struct, frozen=True):
    text: str
    words: list[str]


@dataclass(frozen=True)
class Pair:
    x: int
    y: int


class QuotaError(Exception):
    def __init__(self, used: int, allowed: int) -> None:
        super().__init__(used, allowed)
        self.used = used


class StubbornError(Exception):
    """Cannot be made from its own ``args``."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


@pytest.fixture
def app(broker: BrokerUnderTest, name: str, results: str) -> Iterator[PulsarTasks]:
    """An app with each store of results."""
    app = PulsarTasks(name, broker.url, results=results)
    yield app
    app.close()


@pytest.mark.wire
def test_result_comes_from_another_process(acting: PulsarTasks, start_process: StartProcess, record: Record) -> None:
    worker = start_process("shared")

    result = acting.tasks["shared"].delay("message").get(timeout=120)

    assert result in [f"message by {pid}" for pid in worker.children()]


def test_result_has_the_type_that_the_task_returns(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def transcribe(pair: Pair) -> Transcript:
        return Transcript("two words", [str(pair.x), str(pair.y)])

    start_worker(app)

    assert transcribe.delay(Pair(1, 2)).get(timeout=120) == Transcript("two words", ["1", "2"])


def test_many_threads_wait_for_results_at_once(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    found: dict[int, int] = {}

    def call(number: int) -> None:
        found[number] = double.delay(number).get(timeout=120)

    callers = [threading.Thread(target=call, args=[number]) for number in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert found == {number: 2 * number for number in range(20)}


def test_waiting_is_woken_by_the_push_not_by_looking(
    app: PulsarTasks, start_worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    @app.task
    def wait() -> str:
        release.wait(30)
        return "done"

    start_worker(app)
    release.set()
    wait.delay().get(timeout=120)  # from now on this process listens
    release.clear()
    listening = time.time() + 0.01  # an id tells its instant by the millisecond
    wait_until(lambda: time.time() > listening, "time stood still")
    result = wait.delay()
    monkeypatch.setattr(type(app.results), "find", lambda *_: pytest.fail("it looked"))
    threading.Timer(0.3, release.set).start()

    assert result.get(timeout=120) == "done"


def test_asking_again_and_again_looks_no_more_than_once_in_a_while(
    app: PulsarTasks, start_worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    @app.task
    def wait() -> str:
        release.wait(60)
        return "done"

    looks: list[str] = []
    find = type(app.results).find

    def count(self: Any, task_id: str) -> Result | None:
        looks.append(task_id)
        return find(self, task_id)

    monkeypatch.setattr(type(app.results), "find", count)
    missed = wait.delay()
    assert [missed.state for _ in range(100)] == ["PENDING"] * 100
    assert looks == [missed.id], "before it listened a push may have been missed"
    listening = time.time() + 0.01  # an id tells its instant by the millisecond
    wait_until(lambda: time.time() > listening, "time stood still")
    heard = wait.delay()
    start_worker(app)
    assert [heard.ready() for _ in range(100)] == [False] * 100
    release.set()

    wait_until(lambda: missed.ready() and heard.successful(), "no result")
    assert looks == [missed.id]
    assert (missed.get(timeout=0), heard.get(timeout=0)) == ("done", "done")


def test_result_whose_push_was_lost_is_found_by_asking_on(
    app: PulsarTasks, start_worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    app.results.heard("")  # it listens, but
    monkeypatch.setattr("pulsartasks.results.inbox.Inbox._take", lambda *_: None)
    monkeypatch.setattr("pulsartasks.result.LOOK_AGAIN", 0.5)
    start_worker(app)

    result = double.delay(1)

    wait_until(result.ready, "it was not looked for")
    assert result.get(timeout=0) == 2


def test_result_that_came_before_anybody_waited_is_there(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    worker = start_worker(app)
    before_listening = double.delay(1)
    wait_until(before_listening.ready, "no result")
    assert before_listening.get(timeout=5) == 2

    while_listening = double.delay(2)
    wait_until(lambda: while_listening.state == "SUCCESS", "no result")
    worker.stop()
    assert double.result(while_listening.id).get(timeout=5) == 4
    assert while_listening.get(timeout=0) == 4


def test_result_that_one_handle_has_is_there_for_the_next(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    double.delay(1).get(timeout=120)  # from now on it listens
    waited, asked = double.delay(2), double.delay(3)
    assert waited.get(timeout=120) == 4
    wait_until(asked.ready, "no result")

    for first in (waited, asked):
        wait_until(lambda first=first: app.results.find(first.id) is not None, "it was not kept")  # type: ignore[misc]
        assert app.results.wait(first.id, 0.0, pushed=True) is not None, "it would have waited for another push"


def test_result_can_be_looked_up_by_id_from_another_process(
    broker: BrokerUnderTest, name: str, results: str, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(name="double")
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    ids = [double.delay(number).id for number in range(5)]

    elsewhere = PulsarTasks(name, broker.url, results=results)
    there = elsewhere.task(name="double")(double.function)

    assert [there.result(task_id).get(timeout=120) for task_id in ids] == [0, 2, 4, 6, 8]
    assert there.result(ids[0]).successful()
    elsewhere.close()


def test_result_of_an_id_of_the_callers_own_is_found(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    double.using(task_id="order-17").delay(21).get(timeout=120)

    assert double.result("order-17").get(timeout=120) == 42


def test_unknown_and_unfinished_ids_are_pending(app: PulsarTasks) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    unfinished = double.delay(1)

    for result in (unfinished, double.result(new_task_id()), double.result("nobody")):
        assert (result.state, result.ready(), result.failed()) == ("PENDING", False, False)
        began = time.monotonic()
        with pytest.raises(ResultTimeoutError, match="may still be waiting"):
            result.get(timeout=0.2)
        assert time.monotonic() - began >= 0.2


def test_exception_is_raised_again_with_its_type_and_arguments(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail() -> None:
        raise QuotaError(3, 2)

    start_worker(app)
    result = fail.delay()

    with pytest.raises(QuotaError) as caught:
        result.get(timeout=120)
    assert (caught.value.used, caught.value.args) == (3, (3, 2))
    assert result.failed()
    assert "raise QuotaError(3, 2)" in (result.traceback or "")


def test_exception_that_cannot_be_rebuilt_is_told_in_words(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail() -> None:
        raise StubbornError(7, reason="no")

    @app.task
    def fail_locally() -> None:
        class LocalError(Exception):
            pass

        raise LocalError(object())

    start_worker(app)

    with pytest.raises(TaskError, match="StubbornError: 7: no") as caught:
        fail.delay().get(timeout=120)
    assert (caught.value.type, caught.value.message) == (f"{__name__}.StubbornError", "7: no")
    assert 'raise StubbornError(7, reason="no")' in caught.value.traceback
    with pytest.raises(TaskError, match="LocalError: <object"):
        fail_locally.delay().get(timeout=120)


def test_traceback_of_the_worker_is_shown_with_what_led_to_it(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail() -> None:
        try:
            raise KeyError("stock")
        except KeyError as error:
            raise QuotaError(3, 2) from error

    start_worker(app)

    with pytest.raises(QuotaError) as caught:
        fail.delay().get(timeout=120)
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.index('raise KeyError("stock")') < shown.index("raise QuotaError(3, 2) from error")
    assert shown.index("raise QuotaError(3, 2) from error") < shown.index("fail.delay().get(timeout=120)")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_would_end_a_process_does_not_end_the_caller(kind: str, app: PulsarTasks, start_worker: Workers) -> None:
    def leave() -> None:
        sys.exit(3)

    async def leave_async() -> None:
        sys.exit(3)

    task: Task[[], Any] = app.task(leave) if kind == "sync" else app.task(leave_async)
    start_worker(app)

    with pytest.raises(TaskError, match="SystemExit: 3") as caught:
        task.delay().get(timeout=120)
    assert caught.value.type == "builtins.SystemExit"


def test_enormous_exception_reaches_the_caller_in_part(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("x" * 6_000_000)

    start_worker(app)

    with pytest.raises(ValueError, match=r"^x{1000}") as caught:
        fail.delay().get(timeout=120)
    assert len(str(caught.value)) < 100_000


@pytest.mark.parametrize("what", ["not data", "too large"])
def test_result_that_cannot_be_sent_is_a_failure_that_says_so(
    what: str, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task
    def answer(what: str) -> object:
        return object() if what == "not data" else "x" * 6_000_000

    with capture_logs() as logs:
        start_worker(app)
        with pytest.raises(PulsarTasksError, match=r"the result of answer\(\) cannot be sent as JSON|above the limit"):
            answer.delay(what).get(timeout=120)
        wait_until(lambda: any(entry["event"].startswith("message.") for entry in logs), "its end was not logged")

    assert [entry["event"] for entry in logs if entry["event"].startswith("message.")] == ["message.died"]


def test_result_against_its_annotation_is_refused_by_who_reads_it(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def count() -> int:
        return "seven"  # type: ignore[return-value]

    start_worker(app)

    with pytest.raises(
        UnreadableMessageError, match=r"count ended well, but what it returned is not .* Expected `int`"
    ):
        count.delay().get(timeout=120)


def test_ignored_result_says_so(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    @app.task(ignore_result=True)
    def note() -> object:
        with record.attempt("noted"):
            return object()  # nobody wants it, so it need not be data

    start_worker(app)
    result = note.delay()
    record.wait_for(1)

    with pytest.raises(PulsarTasksError, match="ignore_result=True"):
        result.get(timeout=1)
    with pytest.raises(PulsarTasksError, match="ignore_result=True"):
        _ = result.state


@pytest.mark.guarantee(2)
def test_result_is_kept_before_the_message_is_acknowledged(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    backlogs: list[int] = []
    store = type(app.results).store

    def stored(self: Any, packed: Sequence[PackedResult]) -> Sequence[PulsarTasksError | None]:
        errors = store(self, packed)
        backlogs.append(broker.backlog(double.topics.work, double.subscription))
        return errors

    monkeypatch.setattr(type(app.results), "store", stored)
    start_worker(app)

    double.delay(1).get(timeout=120)

    wait_until(lambda: backlogs == [1], "it was acknowledged too early")
    wait_until(lambda: broker.backlog(double.topics.work, double.subscription) == 0, "it was not acknowledged")


@pytest.mark.guarantee(13)
def test_thread_goes_on_while_a_result_is_being_stored(
    app: PulsarTasks, start_worker: Workers, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    def note(word: str) -> str:
        with record.attempt(word):
            return word

    second_ran = threading.Event()
    store = type(app.results).store

    def stored(self: Any, packed: Sequence[PackedResult]) -> Sequence[PulsarTasksError | None]:
        assert second_ran.wait(60), "the only thread waited for the first result"
        return store(self, packed)

    monkeypatch.setattr(type(app.results), "store", stored)
    start_worker(app, concurrency=1)
    calls = [note.delay("first"), note.delay("second")]
    record.wait_for(2)
    second_ran.set()

    assert [call.get(timeout=120) for call in calls] == ["first", "second"]


@pytest.mark.parametrize("when", ["after its end", "before its end"])
def test_forgotten_result_is_not_to_be_had(
    when: str, broker: BrokerUnderTest, name: str, results: str, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(name="double", track_started=True)
    def double(number: int) -> int:
        return 2 * number

    elsewhere = PulsarTasks(name, broker.url, results=results)
    there = elsewhere.task(name="double")(double.function)
    forgotten, kept = double.delay(1), double.delay(2)
    if when == "before its end":
        forgotten.forget()
    start_worker(app, concurrency=1)
    assert there.result(kept.id).get(timeout=120) == 4
    if when == "after its end":
        assert there.result(forgotten.id).get(timeout=120) == 2
        double.result(forgotten.id).forget()
        forgotten.forget()

    assert there.result(forgotten.id).state == "PENDING"
    with pytest.raises(ResultTimeoutError):
        there.result(forgotten.id).get(timeout=0.1)
    assert forgotten.state == "PENDING"
    with pytest.raises(PulsarTasksError, match=r"was forgotten by forget\(\)"):
        forgotten.get(timeout=120)
    assert there.result(kept.id).state == "SUCCESS"
    elsewhere.close()


def test_results_expire(broker: BrokerUnderTest, name: str, results: str, start_worker: Workers) -> None:
    app = PulsarTasks(name, broker.url, results=results, result_expires=2.0)

    @app.task
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    old = double.delay(1)
    old.get(timeout=120)
    expired = time.time() + 2.5
    wait_until(lambda: time.time() > expired, "time stood still")

    assert double.result(old.id).state == "PENDING"
    app.close()


def test_result_message_can_be_told_by_its_headers(broker: BrokerUnderTest, name: str, start_worker: Workers) -> None:
    app = PulsarTasks(name, broker.url)

    @app.task
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    result = double.delay(4)
    result.get(timeout=120)

    reader = app.broker.read(app.qualify(f"{app.name}.results"), since=time.time() - 60)
    delivery = reader.receive(30)
    assert delivery is not None
    assert delivery.properties[TASK_ID] == result.id
    assert delivery.key == result.id
    assert msgspec.json.decode(delivery.value)["value"] == 8
    reader.close()
    app.close()
