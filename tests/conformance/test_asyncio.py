"""From asyncio: results and events without a thread for each, and without holding up the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pulsartasks import InvalidArgumentsError, PulsarTasks, ResultTimeoutError
from tests.conformance.conftest import Workers

pytestmark = pytest.mark.guarantee(13)

PATIENCE = 60.0


def test_many_wait_for_results_without_a_thread_each(app: PulsarTasks, start_worker: Workers) -> None:
    gate = threading.Event()

    @app.task
    def double(number: int) -> int:
        assert gate.wait(PATIENCE)
        return 2 * number

    async def request() -> tuple[int, list[int]]:
        calls = await asyncio.gather(*(double.adelay(number) for number in range(200)))
        before = threading.active_count()
        waiting = [asyncio.create_task(call.aget(timeout=PATIENCE)) for call in calls]
        await waiting_for(waiting)
        more = threading.active_count() - before
        gate.set()
        return more, await asyncio.gather(*waiting)

    start_worker(app)
    more, results = asyncio.run(request())

    assert results == [2 * number for number in range(200)]
    assert more < 50, "asyncio's own pool for what blocks, and the reader of results"


async def waiting_for(tasks: list[asyncio.Task[int]]) -> None:
    """Give each its turn to begin."""
    for _ in range(len(tasks)):
        await asyncio.sleep(0)


def test_error_of_the_task_is_raised_and_a_timeout_says_so(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def divide(number: int) -> float:
        return 1 / number

    @app.task(topic="nobody")
    def never() -> None: ...

    async def request() -> None:
        with pytest.raises(ZeroDivisionError):
            await (await divide.adelay(0)).aget(timeout=PATIENCE)
        with pytest.raises(ResultTimeoutError, match=r"within 0\.2 s"):
            await (await never.adelay()).aget(timeout=0.2)

    start_worker(app, topics=["divide"])
    asyncio.run(request())


def test_who_was_cancelled_may_ask_again(app: PulsarTasks, start_worker: Workers) -> None:
    gate = threading.Event()

    @app.task
    def answer() -> int:
        assert gate.wait(PATIENCE)
        return 42

    async def request() -> int:
        call = await answer.adelay()
        asking = asyncio.create_task(call.aget())
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.set()
        return await call.aget(timeout=PATIENCE)

    start_worker(app)

    assert asyncio.run(request()) == 42


def test_result_of_a_call_made_elsewhere_is_followed(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    call = double.delay(21)
    call.get(timeout=PATIENCE)

    assert asyncio.run(double.result(call.id).aget(timeout=PATIENCE)) == 42


def test_events_are_published_and_tailed(app: PulsarTasks) -> None:
    happened = app.topic("happened", schema=int)

    async def request() -> list[int]:
        with happened.tail() as tail:
            await asyncio.gather(*(happened.apublish(number) for number in range(3)))
            seen: list[int] = []
            async for number in tail:
                seen.append(number)
                if len(seen) == 3:
                    return sorted(seen)
            return seen

    assert asyncio.run(asyncio.wait_for(request(), PATIENCE)) == [0, 1, 2]


def test_event_has_no_task_id(app: PulsarTasks) -> None:
    happened = app.topic("happened", schema=int)

    with pytest.raises(InvalidArgumentsError, match="has no task_id"):
        happened.publish(1, task_id="x")  # type: ignore[call-arg]
