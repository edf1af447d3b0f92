"""Calls in a block of `app.publishing()` leave together, confirmed or named."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from pulsartasks import (
    AsyncResult,
    InvalidArgumentsError,
    MessageTooLargeError,
    PulsarTasks,
    PulsarTasksError,
    Task,
    UnconfirmedError,
)
from pulsartasks.message import Publication
from pulsartasks.middleware.base import Middleware, Publish
from pulsartasks.options import Mode
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import wait_until


class Counter(Middleware):
    """Knows how many were sent together each time."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        self.sent.append(len(publications))
        return call_next(publications)


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def app(broker: BrokerUnderTest, name: str, counter: Counter) -> Iterator[PulsarTasks]:
    app = PulsarTasks(name, broker.url, middleware=[counter])
    yield app
    app.close()


@pytest.fixture
def echo(app: PulsarTasks) -> Task[[str], str]:
    @app.task
    def echo(text: str) -> str:
        return text

    return echo


def test_calls_and_events_of_a_block_leave_together_at_its_end(
    broker: BrokerUnderTest, app: PulsarTasks, counter: Counter, echo: Task[[str], str], start_worker: Workers
) -> None:
    said = app.topic("said", schema=str, subscriptions=("ears",))
    start_worker(app)

    with app.publishing():
        calls = [echo.delay("one"), echo.using(countdown=0.1).delay("two")]
        assert said.publish("three") == ""
        assert counter.sent == []

    assert counter.sent == [3]
    assert [call.get(timeout=120) for call in calls] == ["one", "two"]
    assert broker.backlog(said.full_name, "ears") == 1


def test_block_in_a_block_joins_it(app: PulsarTasks, counter: Counter, echo: Task[[str], str]) -> None:
    with app.publishing():
        with app.publishing():
            echo.delay("inner")
        echo.delay("outer")
        assert counter.sent == []

    assert counter.sent == [2]


def test_block_that_ends_with_an_exception_sends_nothing(
    app: PulsarTasks, counter: Counter, echo: Task[[str], str]
) -> None:
    calls: list[AsyncResult[str]] = []

    def request() -> None:
        with app.publishing():
            calls.append(echo.delay("never"))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        request()

    assert counter.sent == []
    with pytest.raises(PulsarTasksError, match="never sent"):
        calls[0].get(timeout=120)


def test_result_of_a_call_that_has_not_left_yet_is_not_waited_for(app: PulsarTasks, echo: Task[[str], str]) -> None:
    with app.publishing():
        call = echo.delay("later")
        with pytest.raises(PulsarTasksError, match="when the block"):
            call.get()


@pytest.mark.guarantee(14)
def test_what_was_not_confirmed_is_named_and_the_others_stay_sent(
    broker: BrokerUnderTest, app: PulsarTasks, echo: Task[[str], str]
) -> None:
    calls: list[AsyncResult[str]] = []

    def request() -> None:
        with app.publishing():
            calls.extend(echo.delay(text) for text in ("small", "x" * 6_000_000, "small too"))

    with pytest.raises(UnconfirmedError, match="1 of 3") as caught:
        request()

    [(name, error)] = caught.value.failures.items()
    assert name == f"echo[{calls[1].id}]"
    assert isinstance(error, MessageTooLargeError)
    assert broker.backlog(echo.topics.work, echo.subscription) == 2


def test_other_threads_and_tasks_that_outlive_the_block_send_by_themselves(
    app: PulsarTasks, counter: Counter, echo: Task[[str], str]
) -> None:
    async def outlive(ended: asyncio.Event) -> None:
        await ended.wait()
        echo.delay("on my own")

    async def request() -> None:
        ended = asyncio.Event()
        with app.publishing():
            echo.delay("with the block")
            other = threading.Thread(target=echo.delay, args=["other thread"])
            other.start()
            other.join()
            outliving = asyncio.create_task(outlive(ended))
        ended.set()
        await outliving

    asyncio.run(request())

    assert counter.sent == [1, 1, 1]


@pytest.mark.parametrize("middleware", [[], [Middleware()]], ids=["bare", "middleware"])
def test_calls_from_asyncio_are_sent_beside_each_other(
    broker: BrokerUnderTest, name: str, start_worker: Workers, middleware: list[Middleware]
) -> None:
    app = PulsarTasks(name, broker.url, middleware=middleware)

    @app.task
    def echo(text: str) -> str:
        return text

    texts = [str(number) for number in range(100)]

    async def request() -> list[AsyncResult[str]]:
        too_large = asyncio.create_task(echo.adelay("x" * 6_000_000))
        calls = await asyncio.gather(*(echo.adelay(text) for text in texts))
        with pytest.raises(MessageTooLargeError):
            await too_large
        return calls

    calls = asyncio.run(request())

    worker = start_worker(app)
    assert [call.get(timeout=120) for call in calls] == texts
    worker.stop()
    app.close()


def test_calls_from_asyncio_in_a_block_leave_with_it(
    app: PulsarTasks, counter: Counter, echo: Task[[str], str], start_worker: Workers
) -> None:
    async def request() -> list[AsyncResult[str]]:
        async with app.publishing():
            calls = await asyncio.gather(echo.adelay("one"), echo.adelay("two"))
            assert counter.sent == []
        return list(calls)

    calls = asyncio.run(request())

    assert counter.sent == [2]
    start_worker(app)
    assert {call.get(timeout=120) for call in calls} == {"one", "two"}


def test_wrong_call_from_asyncio_is_refused(app: PulsarTasks, counter: Counter, echo: Task[[str], str]) -> None:
    with pytest.raises(InvalidArgumentsError):
        asyncio.run(echo.adelay(7))  # type: ignore[arg-type]

    assert counter.sent == []


def test_cancelled_call_neither_stops_others_nor_the_end_of_the_loop(broker: BrokerUnderTest, name: str) -> None:
    app = PulsarTasks(name, broker.url)

    @app.task
    def echo(text: str) -> str:
        return text

    async def request(turns: int) -> None:
        given_up = [asyncio.create_task(echo.adelay("given up")) for _ in range(5)]
        wanted = asyncio.create_task(echo.adelay("wanted"))
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in given_up:
            call.cancel()
        await wanted

    for turns in range(4):
        asyncio.run(request(turns))

    wait_until(lambda: 4 <= broker.backlog(echo.topics.work, echo.subscription) <= 24, "the calls were not sent")
    app.close()


@pytest.mark.guarantee(1)
@pytest.mark.parametrize("mode", ["shared", "key_shared", "failover"])
def test_batched_and_compressed_calls_are_each_run_and_acknowledged(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, mode: Mode
) -> None:
    @app.task(batching=True, compression="zstd", mode=mode, key=lambda number: str(number % 3))
    def double(number: int) -> int:
        return 2 * number

    with app.publishing():
        calls = [double.delay(number) for number in range(60)]
    start_worker(app)

    assert [call.get(timeout=120) for call in calls] == [2 * number for number in range(60)]
    wait_until(lambda: broker.backlog(double.topics.work, double.subscription) == 0, "something was left")
