"""Interrupting a run: only while it runs, each kind once, and never the code around it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pulsartasks.errors import SoftTimeLimitExceeded, Terminate
from pulsartasks.worker.interrupt import Alarm, Interrupts, Running, RunningCoroutine, RunningFunction

PATIENCE = 30.0


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    interrupts = Interrupts(frozenset({"revoked"}))
    yield interrupts
    interrupts.close()


def run(
    interrupts: Interrupts, function: Callable[..., Any], *args: Any, task_id: str = "id", limit: float | None = None
) -> Any:
    return interrupts.run(RunningFunction("task", task_id), limit, function, args, {})


def busy() -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        pass


def interrupt_from_elsewhere(interrupts: Interrupts, *kinds: type[BaseException]) -> None:
    for kind in kinds:
        thread = threading.Thread(target=interrupts.interrupt, args=["id", kind])
        thread.start()
        thread.join()


def test_function_that_is_let_be_gives_its_value_or_exception(interrupts: Interrupts) -> None:
    assert run(interrupts, lambda x: x + 1, 2, limit=PATIENCE) == 3
    with pytest.raises(KeyError):
        run(interrupts, {}.__getitem__, "absent")


def test_only_runs_of_the_id_are_interrupted(interrupts: Interrupts) -> None:
    def others() -> str:
        interrupts.interrupt("another id", Terminate)
        return "ended"

    assert run(interrupts, others) == "ended"


def test_terminated_run_raises_terminate_whatever_it_makes_of_it(interrupts: Interrupts) -> None:
    def stubborn() -> None:
        try:
            interrupt_from_elsewhere(interrupts, Terminate)
            busy()
        except Terminate:
            raise ValueError from None

    with pytest.raises(Terminate):
        run(interrupts, stubborn)


def test_terminated_run_that_returns_gives_its_value(interrupts: Interrupts) -> None:
    def stubborn() -> str:
        try:
            interrupt_from_elsewhere(interrupts, Terminate)
            busy()
        except Terminate:
            return "done"
        return "not interrupted"

    assert run(interrupts, stubborn) == "done"


def test_each_kind_comes_once_and_one_after_the_other(interrupts: Interrupts) -> None:
    seen: list[type[BaseException]] = []

    def stubborn() -> None:
        for kind in (SoftTimeLimitExceeded, Terminate):
            try:
                interrupt_from_elsewhere(interrupts, kind)
                busy()
            except (SoftTimeLimitExceeded, Terminate) as error:
                seen.append(type(error))
        interrupt_from_elsewhere(interrupts, SoftTimeLimitExceeded, Terminate)

    run(interrupts, stubborn)

    assert seen == [SoftTimeLimitExceeded, Terminate]


def test_run_whose_notice_was_read_just_before_does_not_begin(interrupts: Interrupts) -> None:
    ran: list[bool] = []

    with pytest.raises(Terminate):
        run(interrupts, ran.append, True, task_id="revoked")

    assert not ran


def test_run_that_has_ended_is_not_interrupted(interrupts: Interrupts) -> None:
    running = RunningFunction("task", "id")
    interrupted: list[bool] = []

    interrupts.run(running, None, int, [], {})

    thread = threading.Thread(target=lambda: interrupted.append(running.interrupt(Terminate)))
    thread.start()
    thread.join()
    assert interrupted == [False]


@pytest.mark.parametrize(
    "kinds",
    [(SoftTimeLimitExceeded,), (Terminate,), (SoftTimeLimitExceeded, Terminate), (Terminate, SoftTimeLimitExceeded)],
)
def test_what_comes_while_a_run_ends_ends_it_and_nothing_comes_later(
    interrupts: Interrupts, kinds: tuple[type[BaseException], ...]
) -> None:
    running = RunningFunction("task", "id")
    running._ended = LockAtWhichOneIsInterrupted(interrupts, kinds)

    with pytest.raises(kinds):
        interrupts.run(running, None, int, [], {})

    thread = threading.Thread(target=lambda: [running.interrupt(kind) for kind in (SoftTimeLimitExceeded, Terminate)])
    thread.start()
    thread.join()
    for _ in range(1000):
        """What settles the message."""


class LockAtWhichOneIsInterrupted:
    """A lock whose owner is interrupted each time just before it gets it."""

    def __init__(self, interrupts: Interrupts, kinds: tuple[type[BaseException], ...]) -> None:
        self._lock = threading.RLock()
        self._interrupts = interrupts
        self._kinds = list(kinds)
        self.release = self._lock.release

    def acquire(self, *, blocking: bool = True) -> bool:
        if blocking and self._kinds:
            interrupt_from_elsewhere(self._interrupts, self._kinds.pop(0))
        return self._lock.acquire(blocking)


def test_coroutine_that_is_interrupted_before_it_began_does_not_begin() -> None:
    ran: list[bool] = []

    async def note() -> None:
        ran.append(True)

    async def main() -> None:
        running = RunningCoroutine("task", "id", loop=asyncio.get_running_loop())
        running.interrupt(SoftTimeLimitExceeded)
        await asyncio.sleep(0)
        await running.drive(note())

    with pytest.raises(SoftTimeLimitExceeded):
        asyncio.run(main())
    assert not ran


def test_soft_limit_in_a_coroutine_is_itself_to_whoever_sees_it_and_leaves_nothing_running() -> None:
    inner: list[str] = []

    async def sleeper() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            inner.append("ended")

    async def task() -> None:
        await asyncio.wait_for(sleeper(), PATIENCE)

    async def main() -> None:
        running = RunningCoroutine("task", "id", loop=asyncio.get_running_loop())
        asyncio.get_running_loop().call_later(0.01, running.interrupt, SoftTimeLimitExceeded)
        await running.drive(task())

    with pytest.raises(SoftTimeLimitExceeded) as error:
        asyncio.run(main())
    assert type(error.value) is SoftTimeLimitExceeded
    assert inner == ["ended"]


def test_cancellation_of_the_coroutines_own_stays_one() -> None:
    async def task() -> str:
        sleeper = asyncio.ensure_future(asyncio.sleep(PATIENCE))
        sleeper.cancel()
        try:
            await sleeper
        except asyncio.CancelledError:
            return "cancelled"
        return "not"

    async def main() -> Any:
        return await RunningCoroutine("task", "id", loop=asyncio.get_running_loop()).drive(task())

    assert asyncio.run(main()) == "cancelled"


def test_alarm_rings_in_the_order_of_instants_and_sweeps_out_what_is_over() -> None:
    rung: list[str] = []
    all_rung = threading.Event()

    def ring(running: Running) -> None:
        rung.append(running.task_id)
        if len(rung) == 3:
            all_rung.set()

    alarm = Alarm(ring)
    now = time.monotonic()
    for number in range(2000):
        over = RunningFunction("task", f"over {number}")
        over.over = True
        alarm.set(now + PATIENCE, over)
    for delay in (0.06, 0.02, 0.04):
        alarm.set(now + delay, RunningFunction("task", str(delay)))

    alarm.start()

    assert all_rung.wait(PATIENCE)
    assert rung == ["0.02", "0.04", "0.06"]
    assert len(alarm._waiting) < 1500
    alarm.close()
