"""Guarantee 4: what is given up is kept with its reason, can be looked at and sent again, and stops no worker."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks, Reject, TaskContext
from pulsartasks.brokers.base import MAX_MESSAGE_SIZE
from pulsartasks.dead_letters import DeadLetters, Kept
from pulsartasks.errors import ConfigurationError, TaskError
from pulsartasks.message import PUBLISHED_AT, TASK, TASK_ID, DeadLetter, Publication
from pulsartasks.task import Task
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(4)


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: int


def kept(app: PulsarTasks, task: Task[..., Any], count: int) -> list[Kept]:
    """The task's dead letters, as soon as there are so many."""
    found: list[Kept] = []

    def enough() -> bool:
        found[:] = DeadLetters(app, task).list()
        return len(found) >= count

    wait_until(enough, f"not {count} dead letters")
    return found


def story(letter: Kept) -> DeadLetter:
    assert letter.story is not None
    return letter.story


@pytest.mark.wire
def test_dead_letter_keeps_the_original_and_tells_why(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(topic="orders", subscription="billing", key=lambda order: order.customer)
    def bill(order: Order) -> None:
        raise ValueError(f"{order.customer} has no money")

    start_worker(app)
    before = datetime.now(timezone.utc)
    result = bill.using(headers={"colour": "red"}).delay(Order("ada", 3))

    [letter] = kept(app, bill, 1)
    assert (letter.id, letter.task) == (result.id, "bill")
    assert letter.delivery.topic == f"{app.qualify('orders')}-billing-DLQ"
    assert msgspec.json.decode(letter.delivery.value) == {"args": [{"customer": "ada", "amount": 3}], "kwargs": {}}
    assert letter.delivery.key == "ada"
    assert letter.delivery.properties["colour"] == "red"
    told = story(letter)
    assert (told.reason, told.attempts) == ("failed", 1)
    assert (told.exception_type, told.exception_message) == ("ValueError", "ada has no money")
    assert "raise ValueError" in told.traceback
    assert (told.topic, told.subscription) == (app.qualify("orders"), "billing")
    assert told.worker
    published, failed = map(datetime.fromisoformat, (told.published_at, told.failed_at))
    assert before - timedelta(seconds=1) <= published <= failed + timedelta(seconds=1)


@pytest.mark.guarantee(2)
def test_dead_letter_tells_when_it_was_first_published_and_all_its_attempts(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(autoretry_for=(OSError,), max_retries=2, default_retry_delay=0.5)
    def fail() -> None:
        raise OSError

    start_worker(app)
    fail.delay()

    [letter] = kept(app, fail, 1)
    told = story(letter)
    published, failed = map(datetime.fromisoformat, (told.published_at, told.failed_at))
    assert told.attempts == 3
    assert failed - published >= timedelta(seconds=0.9)  # two waits, but for the clocks' rounding
    assert told.topic == fail.topics.work


@pytest.mark.parametrize("mode", ["exclusive", "failover", "key_shared"])
def test_ordered_modes_have_dead_letters_too(mode: str, acting: PulsarTasks, start_worker: Workers) -> None:
    task = acting.tasks[mode]
    start_worker(acting, topics=[mode])
    task.delay("a/bad", "raise")
    task.delay("a/good")

    [letter] = kept(acting, task, 1)

    assert (story(letter).reason, letter.delivery.key) == ("failed", "a")


def test_listing_leaves_dead_letters_where_they_are(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail(number: int) -> None:
        raise ValueError

    start_worker(app)
    for number in range(3):
        fail.delay(number)
    ids = [letter.id for letter in kept(app, fail, 3)]

    assert [letter.id for letter in DeadLetters(app, fail).list()] == ids
    assert [letter.id for letter in DeadLetters(app, fail).list()] == ids


def test_rejected_message_is_not_retried(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    @app.task(autoretry_for=(Exception,), default_retry_delay=0.0)
    def refuse() -> None:
        with record.attempt("refuse"):
            raise Reject("not for us")

    start_worker(app)
    refuse.delay()

    [letter] = kept(app, refuse, 1)
    assert (story(letter).reason, story(letter).exception_message) == ("rejected", "not for us")
    assert record.labels() == ["refuse"]


def test_task_that_ends_its_interpreter_fails_like_any_other(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def leave() -> None:
        raise SystemExit(3)

    @app.task
    def stay() -> str:
        return "here"

    start_worker(app)
    leave.delay()

    [letter] = kept(app, leave, 1)
    assert story(letter).exception_type == "SystemExit"
    assert stay.delay().get(timeout=120) == "here"


def test_replayed_message_runs_again_with_all_its_retries(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    mended: list[bool] = []

    @app.task(bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.0, key=lambda name: name)
    def greet(context: TaskContext, name: str) -> dict[str, str | None]:
        with record.attempt(name, context.retries + 1):
            if not mended or context.retries == 0:
                raise OSError
        return {"key": context.request.key, "colour": context.request.headers.get("colour")}

    start_worker(app)
    result = greet.using(headers={"colour": "red"}).delay("ada")
    kept(app, greet, 1)
    mended.append(True)

    [letter] = DeadLetters(app, greet).replay()

    runs = record.wait_for(4)
    assert [run.attempt for run in runs] == [1, 2, 1, 2]
    assert letter.id == result.id
    wait_until(lambda: not list(DeadLetters(app, greet).list()), "the replayed dead letter is still there")


def test_replay_of_some_leaves_the_others(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    mended: list[bool] = []

    @app.task
    def note(label: str) -> None:
        if not mended:
            raise ValueError
        with record.attempt(label):
            pass

    start_worker(app)
    sent = {label: note.delay(label).id for label in "abc"}
    kept(app, note, 3)
    mended.append(True)

    replayed = list(DeadLetters(app, note).replay(lambda letter: letter.id == sent["b"]))

    assert [letter.id for letter in replayed] == [sent["b"]]
    record.wait_for_labels("b")
    assert {letter.id for letter in DeadLetters(app, note).list()} == {sent["a"], sent["c"]}
    assert record.labels() == ["b"]


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_replay_goes_to_its_subscription_alone(
    mode: str, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    happened = app.topic("happened", schema=Order, key=lambda o: o.customer, subscriptions=("calm", "troubled"))
    mended: list[bool] = []

    @app.task(topic=happened, subscription="calm")
    def calm(order: Order) -> None:
        with record.attempt("calm"):
            pass

    @app.task(topic=happened, subscription="troubled", mode=mode)  # type: ignore[call-overload, untyped-decorator]
    def troubled(order: Order) -> None:
        with record.attempt("troubled" if mended else "failing"):
            if not mended:
                raise ValueError

    start_worker(app)
    happened.publish(Order("ada", 1))
    kept(app, troubled, 1)
    record.wait_for_labels("calm", "failing")
    mended.append(True)

    list(DeadLetters(app, troubled).replay())
    record.wait_for_labels("troubled")
    happened.publish(Order("ada", 2))

    record.wait_for(5)
    assert sorted(record.labels()) == ["calm", "calm", "failing", "troubled", "troubled"]


def test_no_dead_letter_is_kept_where_none_is_wanted(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(dead_letter=False)
    def fail() -> None:
        raise ValueError("gone")

    start_worker(app)

    with capture_logs() as logs:
        with pytest.raises(ValueError, match="gone"):
            fail.delay().get(timeout=120)
        wait_until(lambda: any(entry["event"] == "message.died" for entry in logs), "it was not logged")
    assert fail.topics.dead_letter is None
    with pytest.raises(ConfigurationError, match="dead_letter=False"):
        DeadLetters(app, fail)


def test_dead_letters_go_to_the_topic_that_was_named(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(dead_letter="morgue")
    def fail() -> None:
        raise ValueError

    start_worker(app)
    fail.delay()

    [letter] = kept(app, fail, 1)
    assert letter.delivery.topic == app.qualify("morgue")


def test_tasks_that_share_a_dead_letter_topic_each_get_their_own_back(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    happened = app.topic("happened", schema=Order, subscriptions=("work",))
    mended: list[bool] = []

    def run(label: str) -> None:
        if not mended:
            raise ValueError(label)
        with record.attempt(label):
            pass

    @app.task(dead_letter="morgue")
    def first() -> None:
        run("first")

    @app.task(dead_letter="morgue")
    def second() -> None:
        run("second")

    @app.task(topic=happened, subscription="work", dead_letter="morgue")
    def handle(order: Order) -> None:
        run("handle")

    start_worker(app)
    first.delay()
    second.using(countdown=0.1).delay()
    happened.publish(Order("ada", 1))
    assert {letter.task for letter in kept(app, first, 3)} == {"first", "second", "handle"}
    mended.append(True)

    list(DeadLetters(app, first).replay())

    record.wait_for_labels("first", "second", "handle")


# What cannot be run


UNREADABLE = [b"", b"\xff\xfe", b"[" * 100_000, b'{"args": 7}', b'{"args": ["x"], "kwargs": {}}', b"null", b"NaN"]


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_unreadable_calls_are_dead_letters_and_do_not_stop_the_worker(
    mode: str, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(mode=mode, autoretry_for=(Exception,))  # type: ignore[call-overload, untyped-decorator]
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    for value in UNREADABLE:
        app.publish(Publication(double.topics.work, value, properties={TASK: "double"}))

    assert double.delay(4).get(timeout=120) == 8
    letters = kept(app, double, len(UNREADABLE))
    assert sorted(letter.delivery.value for letter in letters) == sorted(UNREADABLE)
    assert {story(letter).reason for letter in letters} == {"unreadable"}
    assert {story(letter).exception_type for letter in letters} == {"UnreadableMessageError"}


def test_unreadable_event_is_a_dead_letter_of_each_subscription(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    happened = app.topic("happened", schema=Order, subscriptions=("a", "b"))

    @app.task(topic=happened, subscription="a")
    def handle_a(order: Order) -> None:
        with record.attempt(f"a/{order.amount}"):
            pass

    @app.task(topic=happened, subscription="b")
    def handle_b(order: Order) -> None:
        with record.attempt(f"b/{order.amount}"):
            pass

    start_worker(app)
    app.publish(Publication(happened.full_name, b'{"customer": "ada", "amount": "many"}'))
    happened.publish(Order("ada", 1))

    record.wait_for_labels("a/1", "b/1")
    for task in (handle_a, handle_b):
        [letter] = kept(app, task, 1)
        assert story(letter).reason == "unreadable"
        assert "amount" in story(letter).exception_message


def test_unknown_task_waits_for_a_worker_that_knows_it(
    broker: BrokerUnderTest, name: str, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(topic="work", name="old")
    def old() -> None:
        """Is there from the beginning."""

    newer = PulsarTasks(name, broker.url)

    @newer.task(topic="work", name="new")
    def new() -> str:
        return "at last"

    with capture_logs() as logs:
        worker = start_worker(app)
        result = new.delay()
        wait_until(lambda: any(entry["event"] == "message.retried" for entry in logs), "it was not put off")
    worker.stop()

    start_worker(newer)

    assert result.get(timeout=120) == "at last"
    newer.close()


def test_unknown_task_is_a_dead_letter_once_it_is_ten_minutes_old(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(topic="work")
    def known() -> str:
        return "fine"

    start_worker(app)
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=11)
    headers = {TASK: "gone", TASK_ID: "one", PUBLISHED_AT: long_ago.isoformat()}  # as a copy of a copy of it says

    app.publish(Publication(known.topics.retry, b'{"args": [], "kwargs": {}}', properties=headers))

    [letter] = kept(app, known, 1)
    assert (letter.id, letter.task, story(letter).reason) == ("one", "gone", "unknown task")
    assert "known here: known" in story(letter).exception_message
    assert known.delay().get(timeout=120) == "fine"


def test_message_with_lying_headers_stops_nobody(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    @app.task(bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.0)
    def note(context: TaskContext, label: str) -> None:
        with record.attempt(label):
            pass

    start_worker(app)
    lies = [
        {"RECONSUMETIMES": "many"},
        {"RECONSUMETIMES": "-1"},
        {"RECONSUMETIMES": "9" * 400},
        {"pt-eta": "soon"},
        {"pt-eta": "-5"},
        {PUBLISHED_AT: "yesterday"},
        {"pt-reply-to": "no topic at all!"},
    ]
    for number, headers in enumerate(lies):
        app.publish(Publication(note.topics.work, b'{"args": ["%d"]}' % number, properties={TASK: "note", **headers}))

    record.wait_for_labels(*map(str, range(len(lies))))


def test_dead_letter_of_a_direct_call_reaches_the_handler_and_keeps_the_calls_own_result(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    happened = app.topic("happened", schema=Order, key=lambda o: o.customer, subscriptions=("work",))
    dead = happened.dead_letters("work", subscriptions=("chat",))

    @app.task(topic=happened, subscription="work")
    def work(order: Order) -> None:
        raise OSError("no way")

    @app.task(topic=dead, subscription="chat", autoretry_for=(KeyError,), max_retries=1, default_retry_delay=0.0)
    def tell(order: Order) -> str:
        with record.attempt(order.customer):
            if len(record.runs()) == 1:
                raise KeyError("not yet")
        return "told"

    start_worker(app)

    call = work.delay(Order("Ada", 3))

    record.wait_for(2)
    with pytest.raises(OSError, match="no way"):
        call.get(timeout=120)
    with pytest.raises(OSError, match="no way"):
        work.result(call.id).get(timeout=120)


def test_dead_letters_can_be_handled_by_a_task_with_retries_of_its_own(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    happened = app.topic("happened", schema=Order, key=lambda o: o.customer, subscriptions=("work",))
    dead = happened.dead_letters("work", subscriptions=("chat",))

    @app.task(topic=happened, subscription="work", autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.0)
    def work(order: Order) -> None:
        raise OSError("no way")

    @app.task(
        topic=dead, subscription="chat", bind=True, autoretry_for=(KeyError,), max_retries=2, default_retry_delay=0.0
    )
    def tell(context: TaskContext, order: Order) -> None:
        letter = context.request.dead_letter
        assert letter is not None
        with record.attempt(
            f"{order.customer}: {letter.exception_message} after {letter.attempts}", context.retries + 1
        ):
            if context.retries < 2:
                raise KeyError

    start_worker(app)
    happened.publish(Order("ada", 1))

    runs = record.wait_for(3)
    assert [run.label for run in runs] == ["ada: no way after 2"] * 3
    assert [run.attempt for run in runs] == [1, 2, 3]
    assert len(kept(app, work, 1)) == 1  # still to be listed and replayed


def test_message_near_the_size_limit_is_kept_when_it_fails(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail(text: str) -> None:
        raise ValueError("x" * 50_000 + "é" * 20_000)

    start_worker(app)
    value = msgspec.json.encode({"args": ["x" * (MAX_MESSAGE_SIZE - 200)]})
    app.publish(Publication(fail.topics.work, value, properties={TASK: "fail"}))

    [letter] = kept(app, fail, 1)
    assert letter.delivery.value == value
    assert story(letter).exception_type == "ValueError"


def test_traceback_of_a_deep_recursion_is_kept_in_part(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def dive(depth: int) -> None:
        def deeper(level: int) -> int:
            return deeper(level + 1)

        deeper(0)

    start_worker(app)
    dive.delay(1)

    [letter] = kept(app, dive, 1)
    assert story(letter).exception_type == "RecursionError"
    assert story(letter).traceback.splitlines()[-1].startswith("RecursionError")
    assert len(story(letter).traceback) < 20_000


def test_error_without_a_text_that_can_be_sent_stops_neither_its_key_nor_the_caller(
    app: PulsarTasks, start_worker: Workers
) -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    @app.task(mode="key_shared", key=lambda name: "one key")
    def read(name: str) -> str:
        if name == "speechless":
            raise SpeechlessError
        if name == "undecodable":
            raise ValueError("a file name that is no text: \udcff")
        return name

    start_worker(app)
    failed = [read.delay("speechless"), read.delay("undecodable")]

    assert read.delay("next").get(timeout=120) == "next"
    for result in failed:
        with pytest.raises(Exception, match=r"SpeechlessError|no text: .*udcff"):
            result.get(timeout=120)
    letters = kept(app, read, 2)
    assert ["SpeechlessError" in story(letters[0]).exception_message, story(letters[1]).exception_message] == [
        True,
        "a file name that is no text: \\udcff",
    ]


@pytest.mark.guarantee(2)
def test_bug_in_settling_leaves_no_key_waiting(
    app: PulsarTasks, start_worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(mode="key_shared", key=lambda name: "one key", ignore_result=True)
    def read(name: str) -> None:
        ran.append(name)

    ran: list[str] = []
    worker = start_worker(app)
    settle = worker._executor._settler.settle
    bugs = iter([ZeroDivisionError("a bug of our own")])

    def settle_at_the_second_try(*args: Any, **kwargs: Any) -> Any:
        for bug in bugs:
            raise bug
        return settle(*args, **kwargs)

    monkeypatch.setattr(worker._executor._settler, "settle", settle_at_the_second_try)
    with capture_logs():
        read.delay("first")
        wait_until(lambda: ran == ["first", "first"], "it did not come again")
        read.delay("second")
        wait_until(lambda: ran[2:] == ["second"], "its key waits for ever")


def test_exit_of_a_coroutine_does_not_end_the_event_loop(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    async def leave() -> None:
        raise SystemExit(3)

    @app.task
    async def stay() -> str:
        return "still there"

    start_worker(app)

    gone: Any = leave.apply_async()
    with pytest.raises(TaskError, match="SystemExit"):
        gone.get(timeout=120)
    result: Any = stay.apply_async()
    assert result.get(timeout=120) == "still there"
