"""`app.testing()`: inside it the app's calls go through a broker in memory and run on threads of this process."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.local import LocalBroker
from pulsartasks.clock import FrozenClock
from pulsartasks.errors import ConfigurationError
from pulsartasks.published import Published, Testing
from pulsartasks.schedule import due, to_milliseconds
from pulsartasks.testing.eager import Eagerness, EagerWorker
from pulsartasks.testing.recorder import Recorder, Target
from pulsartasks.topics import check_several
from pulsartasks.worker.worker import Worker

_LOOK_AGAIN = 0.002


class TestingSession:
    """A running test of an app; `Testing` documents it."""

    __test__ = False  # pytest must not take it for a test

    def __init__(
        self,
        broker: LocalBroker,
        worker: Worker | None,
        recorder: Recorder,
        clock: FrozenClock | None,
        schedule: Ticks | None,
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._recorder = recorder
        self._clock = clock
        self._schedule = schedule

    def join(self, timeout: float = 10.0) -> None:
        if isinstance(self._worker, EagerWorker):
            self._worker.run()
        deadline = time.monotonic() + timeout
        while unsettled := self._unsettled():
            if time.monotonic() > deadline:
                raise TimeoutError(f"messages that are not settled after {timeout:g} s: {unsettled}")
            time.sleep(_LOOK_AGAIN)

    def advance(self, by: float | timedelta, timeout: float = 10.0) -> None:
        if self._clock is None:
            raise ConfigurationError("the clock ticks by itself; write app.testing(clock=FrozenClock())")
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        end = self._clock.now() + seconds
        self.join(timeout)
        while (due := self._next_instant(self._clock)) is not None and due <= end:
            self._move(self._clock, due, timeout)
        self._move(self._clock, end, timeout)

    def published(self, target: Target | None = None) -> Sequence[Published]:
        return self._recorder.published(target)

    def assert_published(self, target: Any, /, *args: Any, **kwargs: Any) -> Published:
        __tracebackhide__ = True
        return self._recorder.find(target, args, kwargs)

    def _unsettled(self) -> int:
        """How many messages are to be waited for, and what else; 0: none."""
        if self._worker is None:
            return 0
        # Subscriptions count from when they are consumed: looking earlier would find nothing to wait for.
        if not self._worker.ready or not self._worker.revoked.keys() >= set(self._recorder.revoked):
            return 1
        if self._clock is None:
            return self._broker.store.unsettled(due_by=math.inf)
        asleep, _ = self._worker.asleep()
        unsettled = self._broker.store.unsettled(due_by=self._clock.now()) - asleep
        return unsettled or int(asleep != self._worker.asleep()[0])  # nothing has moved while it was counted

    def _next_instant(self, clock: FrozenClock) -> float | None:
        asleep = None if self._worker is None else self._worker.asleep()[1]
        tick = None if self._schedule is None else self._schedule.next_instant()
        waiting = self._broker.store.next_instant(after=clock.now()), asleep, tick
        return min((due for due in waiting if due is not None), default=None)

    def _move(self, clock: FrozenClock, instant: float, timeout: float) -> None:
        clock.move_to(instant)
        if self._schedule is not None:
            self._schedule.send()
        self._broker.look()
        self.join(timeout)


class Ticks:
    """What beat sends, where there is one copy and the clock comes to every tick."""

    def __init__(self, app: PulsarTasks) -> None:
        self._app = app
        self._since = self._now()

    def next_instant(self) -> float | None:
        """When the next tick is due, in seconds since the epoch; None: never."""
        instants = [entry.schedule.next(self._since) for entry in self._app.scheduled.values()]
        return min(instants).timestamp() if instants else None

    def send(self) -> None:
        """Send what came due since the last time."""
        now = self._now()
        for entry in self._app.scheduled.values():
            for tick in due(entry, since=self._since, now=now):
                self._app.publish(entry.tick(self._app.name, to_milliseconds(tick)))
        self._since = now

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._app.clock.now(), timezone.utc)


@contextmanager
def testing(
    app: PulsarTasks,
    *,
    topics: Collection[str] | None = None,
    concurrency: int = 2,
    clock: FrozenClock | None = None,
    eager: bool = False,
    beat: bool = False,
) -> Iterator[Testing]:
    """Replace the app's broker by one in memory, and run a worker on it until the block ends.

    `PulsarTasks.testing` documents the arguments.

    Resources are set up and torn down as in a real worker; without any tasks to run there is none. What is sent to
    topics that nobody consumes stays there, and `Testing.join` does not wait for it.
    """
    check_several(topics or (), option="topics")
    recorder, eagerness = Recorder(app), Eagerness()
    middleware = app.middleware
    moving = FrozenClock() if eager and clock is None else None
    if beat and clock is None:
        raise ConfigurationError(
            "beat=True sends what a frozen clock comes to; write app.testing(clock=FrozenClock(), ...)"
        )
    with app.on_broker("memory://", clock=clock or moving) as broker, ExitStack() as stack:
        assert isinstance(broker, LocalBroker)
        broker.clock = app.clock
        stack.callback(setattr, app, "middleware", middleware)
        app.middleware = (recorder, *([eagerness] if eager else []), *middleware)
        worker: Worker | None = None
        if app.tasks if topics is None else topics:
            if eager:
                worker = EagerWorker(app, broker, eagerness, topics=topics, clock=moving)
            else:
                worker = Worker(app, concurrency=concurrency, topics=topics)
            stack.callback(worker.stop, grace=5.0)
            worker.start()
        yield TestingSession(broker, worker, recorder, clock, Ticks(app) if beat else None)
