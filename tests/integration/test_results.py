"""Results on a topic: how long they are kept, what is trimmed, and what is heard of twice or never."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec
import pytest

from pulsartasks.brokers.base import Delivery
from pulsartasks.brokers.local import LocalBroker
from pulsartasks.brokers.local.broker import LocalReader
from pulsartasks.clock import SystemClock
from pulsartasks.errors import BrokerUnavailableError, RemoteTraceback, TaskError
from pulsartasks.message import Publication, new_task_id
from pulsartasks.results import inbox
from pulsartasks.results.base import Place, Progress, RemoteError, Reported, Result
from pulsartasks.results.forgotten import Forgotten
from pulsartasks.results.inbox import PUSHED, Waiter
from pulsartasks.results.topic import TopicResults
from tests.services import wait_until

TOPIC = "persistent://public/default/shop.results"


@pytest.fixture
def broker(database: Path) -> Iterator[LocalBroker]:
    broker = LocalBroker(database)
    yield broker
    broker.close()


@pytest.fixture
def caller(broker: LocalBroker) -> Iterator[TopicResults]:
    store = TopicResults(Place(broker, TOPIC))
    yield store
    store.close()


@pytest.fixture
def worker(database: Path) -> Iterator[TopicResults]:
    """The store of another process."""
    broker = LocalBroker(database)
    store = TopicResults(Place(broker, TOPIC))
    yield store
    store.close()
    broker.close()


def result(task_id: str, value: object = None) -> Result:
    return Result(id=task_id, task="add", state="SUCCESS", value=msgspec.Raw(msgspec.json.encode(value)))


def progress(task_id: str, done: int, *, retries: int = 0) -> Result:
    """A report that was made `done` seconds after the epoch."""
    return Result(task_id, "add", "PROGRESS", progress=Progress(done, 10), retries=retries, at=float(done))


def failure(task_id: str) -> Result:
    return Result(id=task_id, task="add", state="FAILURE", error=RemoteError.capture(ValueError("no")))


def test_result_is_pushed_to_its_caller_alone(caller: TopicResults, worker: TopicResults) -> None:
    task_id = new_task_id()
    found: list[Result | None] = []
    waiter = threading.Thread(target=lambda: found.append(caller.wait(task_id, 30, pushed=True)))
    waiter.start()

    worker.keep(result(task_id, 5), reply_to=caller.reply_to)
    waiter.join(30)

    assert [one.value for one in found if one is not None] == [msgspec.Raw(b"5")]
    assert caller.reply_to.startswith("non-persistent://")
    assert caller.reply_to != worker.reply_to


def test_results_that_are_stored_together_reach_each_caller_in_one_message_as_far_as_they_fit(
    broker: LocalBroker, caller: TopicResults, worker: TopicResults
) -> None:
    ids = [new_task_id() for _ in range(5)]
    sizes = [10, 10, PUSHED, 10, 10]
    packed = [
        worker.pack(result(task_id, "x" * size), reply_to=caller.reply_to)
        for task_id, size in zip(ids, sizes, strict=True)
    ]
    messages = broker.read(caller.reply_to)

    assert list(worker.store(packed)) == [None] * 5

    pushed = [messages.receive(30) for _ in range(3)]
    assert messages.receive(0.0) is None
    assert [len(msgspec.json.decode(one.value)) for one in pushed if one is not None] == [2, 1, 2]
    found = [caller.wait(task_id, 30, pushed=True) for task_id in ids]
    assert [one.id for one in found if one is not None] == ids


def test_result_whose_push_was_lost_is_found_before_the_timeout(caller: TopicResults, worker: TopicResults) -> None:
    assert caller.wait(new_task_id(), 0, pushed=True) is None  # it listens now
    task_id = new_task_id()

    worker.keep(result(task_id), reply_to=None)

    assert caller.wait(task_id, 0.1, pushed=True) is not None


def test_result_pushed_during_a_look_that_finds_nothing_is_not_forgotten(
    caller: TopicResults, worker: TopicResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = new_task_id()

    def look(_: str) -> None:
        worker.keep(result(task_id, 5), reply_to=caller.reply_to)
        wait_until(lambda: caller._inbox._waiters[task_id].result is not None, "the result was not pushed")

    monkeypatch.setattr(caller, "find", look)

    assert caller.wait(task_id, 5, pushed=True) == result(task_id, 5)


class HeldLook:
    """A look-up that has begun and goes on when it is told to; the first one may fail then."""

    def __init__(self, store: TopicResults, *, fails: bool = False) -> None:
        self._find = store.find
        self._fails = fails
        self._begun, self._release = threading.Event(), threading.Event()

    def __call__(self, task_id: str) -> Result | None:
        if self._begun.is_set():
            return self._find(task_id)
        self._begun.set()
        assert self._release.wait(30)
        if self._fails:
            raise BrokerUnavailableError("away for a moment")
        return self._find(task_id)

    def wait_until_begun(self) -> None:
        assert self._begun.wait(30)

    def go_on(self) -> None:
        self._release.set()


def waits(thread: threading.Thread) -> bool:
    """Whether it waits to be told of something."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is threading.Condition.wait.__code__


@pytest.mark.parametrize("fails", [False, True], ids=["finds", "fails"])
@pytest.mark.parametrize("how", ["wait", "watch", "each"])
def test_whoever_joins_a_look_is_woken_by_its_end(
    how: str, fails: bool, caller: TopicResults, worker: TopicResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = new_task_id()
    worker.keep(result(task_id, 5), reply_to=None)
    look = HeldLook(caller, fails=fails)
    monkeypatch.setattr(caller, "find", look)
    found: list[Result | None] = []
    ways: dict[str, Callable[[], object]] = {
        "wait": lambda: found.append(caller.wait(task_id, 60, pushed=True)),
        "watch": lambda: found.append(caller.watch(task_id, 60, lambda _: None)),
        "each": lambda: found.extend(caller.each([task_id], 60, pushed=True)),
    }

    def begin() -> None:
        try:
            caller.wait(task_id, 60, pushed=True)
        except BrokerUnavailableError:
            assert fails

    first, second = threading.Thread(target=begin), threading.Thread(target=ways[how])
    first.start()
    look.wait_until_begun()
    waiter = caller._inbox._waiters[task_id]
    second.start()
    wait_until(lambda: waits(second) if how == "wait" else bool(waiter._listeners), "it did not join")

    look.go_on()
    second.join(20)  # it would look by itself after LOOK_AGAIN

    assert found == [result(task_id, 5)]
    first.join(30)


@pytest.mark.parametrize("cancelled", [False, True])
def test_whoever_joins_a_look_in_asyncio_is_woken_by_its_end(
    cancelled: bool, caller: TopicResults, worker: TopicResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = new_task_id()
    worker.keep(result(task_id, 5), reply_to=None)
    look = HeldLook(caller)
    monkeypatch.setattr(caller, "find", look)

    async def wait_twice() -> Result | None:
        first = asyncio.create_task(caller.wait_async(task_id, 60, pushed=True))
        await asyncio.to_thread(look.wait_until_begun)
        waiter = caller._inbox._waiters[task_id]
        second = asyncio.create_task(caller.wait_async(task_id, 60, pushed=True))
        await asyncio.to_thread(wait_until, lambda: bool(waiter._listeners), "it did not join")
        if cancelled:
            first.cancel()
        look.go_on()
        await asyncio.wait([first])
        return await asyncio.wait_for(second, 20)

    assert asyncio.run(wait_twice()) == result(task_id, 5)


class FetchedMeanwhile(Waiter):
    """Whoever asks for its claim again finds that another thread has fetched it."""

    def __init__(self, claimed: Delivery) -> None:
        self._left = [claimed]
        super().__init__(may_have_missed=False)

    @property
    def claimed(self) -> Delivery | None:
        return self._left.pop() if self._left else None

    @claimed.setter
    def claimed(self, claimed: Delivery | None) -> None: ...


def test_claim_that_two_threads_fetch_at_once_is_a_result_for_both(caller: TopicResults, worker: TopicResults) -> None:
    packed = worker.pack(result(new_task_id(), 5), reply_to=caller.reply_to)
    waiter = FetchedMeanwhile(Delivery(caller.reply_to, "1", packed.value, None, packed.headers, time.time()))

    caller._look(waiter, packed.id)

    assert waiter.result == result(packed.id, 5)


def test_wait_that_gives_up_leaves_the_others_of_the_same_result_waiting(
    caller: TopicResults, worker: TopicResults
) -> None:
    task_id = new_task_id()
    found: list[Result | None] = []
    patient = threading.Thread(target=lambda: found.append(caller.wait(task_id, 20, pushed=True)))
    patient.start()
    assert caller.wait(task_id, 0.1, pushed=True) is None

    worker.keep(result(task_id, 5), reply_to=caller.reply_to)
    patient.join(5)

    assert found == [result(task_id, 5)]


def test_results_of_many_calls_come_as_they_arrive_and_by_one_look(
    caller: TopicResults, worker: TopicResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "REMEMBERED", 10)
    assert caller.wait(new_task_id(), 0, pushed=True) is None  # it listens now
    task_ids = [new_task_id() for _ in range(100)]
    for task_id in reversed(task_ids[1:]):
        worker.keep(result(task_id), reply_to=caller.reply_to)
    looks: list[Collection[str]] = []
    follow = caller.follow

    def count(task_ids: Collection[str], *, until: float) -> Iterator[Result]:
        looks.append(list(task_ids))
        return follow(task_ids, until=until)

    monkeypatch.setattr(caller, "follow", count)

    arriving = caller.each(task_ids, 20, pushed=True)
    first = [next(arriving).id for _ in range(99)]
    worker.keep(result(task_ids[0]), reply_to=caller.reply_to)

    assert set(first) == set(task_ids[1:])
    assert [one.id for one in arriving] == task_ids[:1]
    assert len(looks) == 1


def test_report_is_no_result_to_who_waits(caller: TopicResults, worker: TopicResults) -> None:
    task_id = new_task_id()
    caller.heard(task_id)  # it listens
    found: list[Result | None] = []
    waiter = threading.Thread(target=lambda: found.append(caller.wait(task_id, 30, pushed=True)))
    waiter.start()

    for number in range(3):
        worker.report([Reported(progress(task_id, number), caller.reply_to)])
    wait_until(lambda: caller.heard(task_id).newest == progress(task_id, 2), "it was not pushed")
    worker.keep(result(task_id, 5), reply_to=caller.reply_to)
    waiter.join(30)

    assert found == [result(task_id, 5)]


def test_newest_report_counts_in_whatever_order_they_arrive(caller: TopicResults, worker: TopicResults) -> None:
    task_id = new_task_id()
    caller.heard(task_id)
    reports = [progress(task_id, 1, retries=1), progress(task_id, 9), progress(task_id, 2, retries=1)]
    reports += [progress(task_id, 0, retries=1)]

    worker.report([Reported(each, caller.reply_to) for each in reports])

    assert caller.find_state(task_id) == progress(task_id, 2, retries=1)
    wait_until(lambda: caller.heard(task_id).newest == progress(task_id, 2, retries=1), "it was not pushed")


def test_wait_for_a_call_made_elsewhere_follows_what_is_kept(caller: TopicResults, worker: TopicResults) -> None:
    task_id = new_task_id()
    found: list[Result | None] = []
    waiter = threading.Thread(target=lambda: found.append(caller.wait(task_id, 30, pushed=False)))
    waiter.start()
    worker.keep(result(new_task_id()), reply_to=None)

    worker.keep(result(task_id), reply_to=None)
    waiter.join(30)

    assert [one.id for one in found if one is not None] == [task_id]


def test_result_of_what_was_replayed_counts_instead_of_its_failure(caller: TopicResults, worker: TopicResults) -> None:
    task_id = new_task_id()
    for ended in (failure(task_id), result(task_id, 5)):
        worker.keep(ended, reply_to=None)

    found = caller.find(task_id)

    assert found is not None
    assert found.state == "SUCCESS"


def test_look_up_ends_at_a_success(caller: TopicResults, worker: TopicResults) -> None:
    task_id = new_task_id()
    for value in (5, 6):
        worker.keep(result(task_id, value), reply_to=None)

    found = caller.find(task_id)

    assert found is not None
    assert bytes(found.value) == b"5", "it read on"


class LentLock:
    """A lock that the first thread to give it back does not get past until `taken`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._once = threading.Lock()
        self.given_back, self.taken = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self._once.acquire(blocking=False):
            self.given_back.set()
            assert self.taken.wait(30)


def test_look_for_what_is_forgotten_that_fails_takes_nothing_from_another_one(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = Forgotten(broker, f"{TOPIC}-forgotten", window=60.0, clock=SystemClock())
    forgotten.add("17")
    lock = LentLock()
    monkeypatch.setattr(forgotten._log, "_reading", lock)
    receive = LocalReader.receive
    failed: list[BrokerUnavailableError] = []

    def look() -> None:
        try:
            forgotten.all()
        except BrokerUnavailableError as error:
            failed.append(error)

    first = threading.Thread(target=look)

    def fail_first(self: LocalReader, timeout: float) -> Delivery | None:
        if threading.current_thread() is first:
            raise BrokerUnavailableError("away for a moment")
        lock.taken.set()
        first.join(30)
        return receive(self, timeout)

    monkeypatch.setattr(LocalReader, "receive", fail_first)
    first.start()
    assert lock.given_back.wait(30)

    assert list(forgotten.all()) == ["17"]
    assert len(failed) == 1
    forgotten.close()


def test_expired_results_are_let_go_of_and_others_kept(broker: LocalBroker) -> None:
    store = TopicResults(Place(broker, TOPIC, expires=0.5))
    old, young = new_task_id(), new_task_id()
    store.keep(result(old), reply_to=None)
    border = time.time() + 0.6
    wait_until(lambda: time.time() > border, "time stood still")
    store.keep(result(young), reply_to=None)

    store.expire()

    kept = broker.store.scan(TOPIC, after=0, limit=10)
    assert [row.key for row in kept] == [young]
    assert store.find(young) is not None
    store.close()


def test_unasked_results_are_remembered_within_a_bound(
    caller: TopicResults, worker: TopicResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "REMEMBERED", 3)
    caller.wait(new_task_id(), 0, pushed=True)
    ids = [new_task_id() for _ in range(5)]

    for task_id in ids:
        worker.keep(result(task_id), reply_to=caller.reply_to)

    assert all(caller.wait(task_id, 30, pushed=True) for task_id in ids)
    assert len(caller._inbox._arrived) <= 3


def test_nonsense_on_the_reply_topic_is_no_harm(
    broker: LocalBroker, caller: TopicResults, worker: TopicResults
) -> None:
    caller.wait(new_task_id(), 0, pushed=True)
    broker.publish(Publication(caller.reply_to, b"nonsense"))
    task_id = new_task_id()

    worker.keep(result(task_id), reply_to=caller.reply_to)

    assert caller.wait(task_id, 30, pushed=True) is not None


def test_broker_that_fails_for_a_moment_does_not_end_the_listening(
    caller: TopicResults, worker: TopicResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "LISTEN_AGAIN", 0.0)
    caller.wait(new_task_id(), 0, pushed=True)
    failed = threading.Event()
    receive = LocalReader.receive

    def fail_once(self: LocalReader, timeout: float) -> Delivery | None:
        if failed.is_set():
            return receive(self, timeout)
        failed.set()
        raise BrokerUnavailableError("away for a moment")

    monkeypatch.setattr(LocalReader, "receive", fail_once)
    assert failed.wait(30)
    task_id = new_task_id()

    worker.keep(result(task_id), reply_to=caller.reply_to)

    assert caller.wait(task_id, 20, pushed=True) is not None  # by a push, since it looks only after LOOK_AGAIN


def test_closed_store_stops_listening(broker: LocalBroker) -> None:
    store = TopicResults(Place(broker, TOPIC))
    store.wait(new_task_id(), 0, pushed=True)

    store.close()
    store.close()

    wait_until(
        lambda: all(thread.name != "pulsartasks-results" for thread in threading.enumerate()), "it still listens"
    )


class KnownError(Exception):
    class InnerError(Exception):
        pass


class SpokenError(Exception):
    """Keeps its text alone."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class PickledError(Exception):
    """Says how it is made."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason

    def __reduce__(self) -> tuple[type[PickledError], tuple[int, str]]:
        return PickledError, (self.code, self.reason)


@pytest.mark.parametrize(
    ("error", "restored"),
    [
        (KnownError("why", 3), KnownError("why", 3)),
        (ValueError(), ValueError()),
        (KeyError("k"), KeyError("k")),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), None),
        (KnownError.InnerError(1), KnownError.InnerError(1)),
        (SpokenError(7), SpokenError(7)),
        (FileNotFoundError(2, "No such file", "x.txt"), FileNotFoundError(2, "No such file", "x.txt")),
        (TaskError("E: no", "shop.E", "no", "somewhere"), TaskError("E: no", "shop.E", "no", "somewhere")),
        (PickledError(7, "no"), PickledError(7, "no")),
        (SystemExit(3), TaskError("SystemExit: 3")),
        (KeyboardInterrupt(), TaskError("KeyboardInterrupt: ")),
    ],
)
def test_exception_travels_as_data(error: BaseException, restored: Exception | None) -> None:
    sent = msgspec.json.decode(msgspec.json.encode(RemoteError.capture(error)), type=RemoteError)

    found = sent.restore()

    if restored is not None:
        assert (type(found), str(found), found.args) == (type(restored), str(restored), restored.args)
        assert not getattr(restored, "type", "") or vars(found) == vars(restored)
        assert isinstance(found.__cause__, RemoteTraceback)
    assert isinstance(found, Exception)


@pytest.mark.parametrize("kind", ["os:system", "builtins:print", "subprocess:Popen", "no.such.module:Error", "", "x"])
def test_result_never_chooses_what_code_runs(kind: str) -> None:
    found = RemoteError(type=kind, message="boo", arguments=["echo hacked"], traceback="").restore()

    assert isinstance(found, TaskError)
