"""`app.testing(clock=FrozenClock())`: time passes when a test says so, and then at once."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pulsartasks import ConfigurationError, FrozenClock, PulsarTasks, Task, TaskContext, chord
from pulsartasks.dead_letters import DeadLetters

DAY = 86_400.0
START = datetime(2026, 3, 28, 12, tzinfo=timezone.utc)


@pytest.fixture
def app() -> PulsarTasks:
    return PulsarTasks("shop", "memory://")


@pytest.fixture
def clock() -> FrozenClock:
    """Far from now, so that whoever asks another clock is found out."""
    return FrozenClock(START)


@pytest.fixture(params=["shared", "key_shared", "failover"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where retries wait is different in each."""
    return {"mode": request.param, "key": lambda *_: "one"}


def test_delayed_call_runs_when_the_clock_has_come_to_it_and_not_before(
    app: PulsarTasks, clock: FrozenClock, options: dict[str, Any]
) -> None:
    seen: list[float] = []

    def run(days: int) -> None:
        seen.append(clock.now() - START.timestamp())

    note: Task[[int], None] = app.task(name="note", **options)(run)
    with app.testing(clock=clock) as running:
        note.using(countdown=2 * DAY).delay(2)
        note.using(eta=START + timedelta(days=1)).delay(1)
        running.join()
        running.advance(DAY - 1)
        assert seen == []

        running.advance(timedelta(days=3))

        assert seen == [DAY, 2 * DAY]  # each at its own instant
        assert clock.now() == START.timestamp() + 4 * DAY - 1


def test_retries_wait_for_the_clock(app: PulsarTasks, clock: FrozenClock, options: dict[str, Any]) -> None:
    tried: list[float] = []

    @app.task(bind=True, autoretry_for=(OSError,), max_retries=3, default_retry_delay=3600.0, **options)
    def fetch(self: TaskContext) -> str:
        tried.append(clock.now() - START.timestamp())
        if self.retries < 3:
            raise OSError("no answer")
        return "got it"

    with app.testing(clock=clock) as running:
        call = fetch.delay()
        running.join()
        assert tried == [0.0]
        running.advance(3600)
        assert tried == [0.0, 3600.0]

        running.advance(DAY)

        assert tried == [0.0, 3600.0, 7200.0, 10_800.0]
        assert call.get(timeout=10) == "got it"


def test_what_waits_behind_a_retry_of_its_key_is_not_waited_for(app: PulsarTasks, clock: FrozenClock) -> None:
    done: list[int] = []

    @app.task(
        bind=True, mode="key_shared", key=lambda number: "one", autoretry_for=(OSError,), default_retry_delay=60.0
    )
    def book(self: TaskContext, number: int) -> None:
        if number == 1 and not self.retries:
            raise OSError
        done.append(number)

    with app.testing(clock=clock) as running:
        for number in (1, 2, 3):
            book.delay(number)
        running.join()
        assert done == []

        running.advance(60)

        assert done == [1, 2, 3]


def test_calls_expire_by_the_clock_and_dead_letters_tell_its_time(app: PulsarTasks, clock: FrozenClock) -> None:
    @app.task(max_retries=0)
    def fail() -> None:
        raise ValueError

    with app.testing(clock=clock) as running:
        late = fail.using(expires=60, countdown=120).delay()
        running.advance(120)
        fail.delay()
        running.join()

        assert late.state == "REVOKED"
        [letter] = DeadLetters(app, fail).list()
        assert letter.story is not None
        assert letter.story.failed_at == (START + timedelta(seconds=120)).isoformat(timespec="milliseconds")


def test_call_that_is_revoked_before_it_is_due_never_runs(app: PulsarTasks, clock: FrozenClock) -> None:
    seen: list[int] = []

    @app.task
    def note(number: int) -> None:
        seen.append(number)

    with app.testing(clock=clock) as running:
        calls = [note.using(countdown=30 * DAY).delay(number) for number in range(20)]
        for call in calls[:19]:
            call.revoke()

        running.advance(30 * DAY)

        assert seen == [19]
        assert {call.state for call in calls[:19]} == {"REVOKED"}


def test_what_a_task_delays_runs_in_the_same_move(app: PulsarTasks, clock: FrozenClock) -> None:
    seen: list[float] = []

    @app.task
    def remind(times: int) -> None:
        seen.append(clock.now() - START.timestamp())
        if times > 1:
            remind.using(countdown=DAY).delay(times - 1)

    with app.testing(clock=clock) as running:
        remind.delay(4)
        running.advance(10 * DAY)

    assert seen == [0.0, DAY, 2 * DAY, 3 * DAY]


def test_once_is_remembered_by_the_clock(app: PulsarTasks, clock: FrozenClock) -> None:
    seen: list[float] = []

    @app.task(once=True, once_for=DAY)
    def ship() -> None:
        seen.append(clock.now() - START.timestamp())

    with app.testing(clock=clock) as running:
        for hours in (0, 23, 25):
            running.advance(hours * 3600 - (clock.now() - START.timestamp()))
            ship.using(task_id="order-7").delay()
            running.join()

    assert seen == [0.0, 25 * 3600.0]


def test_a_task_that_hangs_is_told(app: PulsarTasks, clock: FrozenClock) -> None:
    go = threading.Event()

    @app.task
    def hang() -> None:
        go.wait(30)

    with app.testing(clock=clock) as running:
        hang.using(countdown=60).delay()
        with pytest.raises(TimeoutError, match=r"not settled after 0.1 s: 1"):
            running.advance(60, timeout=0.1)
        go.set()


def test_clock_that_ticks_cannot_be_moved(app: PulsarTasks) -> None:
    @app.task
    def note() -> None:
        """Is there."""

    with app.testing() as running, pytest.raises(ConfigurationError, match="clock=FrozenClock"):
        running.advance(1)


def test_clock_never_goes_back_and_needs_a_time_zone() -> None:
    clock = FrozenClock(START)
    clock.move(-5)

    assert clock.now() == START.timestamp()
    with pytest.raises(ValueError, match="no time zone"):
        FrozenClock(datetime(2026, 3, 28))  # noqa: DTZ001 - it is what is refused


def test_chord_waits_for_a_delayed_part_and_join_does_not(app: PulsarTasks, clock: FrozenClock) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    with app.testing(clock=clock) as running:
        result = chord([add.s(1, 1), add.s(2, 2).set(countdown=DAY / 2)], total.s()).delay()
        running.join()
        assert not result.ready()

        running.advance(DAY / 2)

        assert result.get(timeout=10) == 6
