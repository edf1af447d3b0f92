"""Eager: what was published runs in the thread that published it, and `publish` returns when it has ended."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from typing import Literal

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Consumer, Delivery, Subscription
from pulsartasks.brokers.local import LocalBroker
from pulsartasks.clock import FrozenClock
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Publication, Request
from pulsartasks.middleware.base import Execute, Middleware, Publish
from pulsartasks.outcome import Outcome
from pulsartasks.topics import COUNTER
from pulsartasks.worker.worker import Worker

LOOK_AGAIN = 0.001
"""Seconds between two looks at whether a result is stored."""

_inside: ContextVar[Literal["task", "worker"] | None] = ContextVar("inside", default=None)
"""What this thread does while it runs messages: a task's own code, or what is around it."""


class Eagerness(Middleware):
    """Has `run` called after what the test and its tasks publish, but not after what the worker itself does."""

    def __init__(self) -> None:
        self.run: Callable[[], None] = lambda: None

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        outcomes = call_next(publications)
        if _inside.get() != "worker":  # then the loop that is at work comes to it
            self.run()
        return outcomes

    def execute(self, request: Request, call_next: Execute) -> Outcome:
        token = _inside.set("task")
        try:
            return call_next(request)
        finally:
            _inside.reset(token)


class EagerWorker(Worker):
    """A worker without threads.

    Args:
        clock: is moved to when the next message is due; None: only what is due runs.
    """

    def __init__(
        self,
        app: PulsarTasks,
        broker: LocalBroker,
        eagerness: Eagerness,
        *,
        topics: Collection[str] | None,
        clock: FrozenClock | None,
    ) -> None:
        super().__init__(app, topics=topics)
        self._executor.hurry()
        self._broker = broker
        self._eagerness = eagerness
        self._clock = clock
        self._subscribed: list[tuple[str, Consumer]] = []
        self._lock = threading.Lock()
        self._running = 0
        """Messages that run now: a task may wait for another that it called."""

    @property
    def ready(self) -> bool:
        return True

    def _consume(self, failed: Callable[[BaseException], None]) -> None:
        """From now on what is published runs."""
        self._learn()
        topics: dict[str, list[str]] = defaultdict(list)
        for task in self._tasks:
            topics[task.subscription] += [task.topics.work, task.topics.calls, task.topics.retry, task.topics.delayed]
        for subscription, names in topics.items():
            unique = tuple(dict.fromkeys(names))
            for name in unique:
                self.app.declare(name)
            consumer = self._broker.subscribe(Subscription(unique, subscription, prefetch=1))
            self._subscribed.append((subscription, consumer))
        self.app.declare(self.app.chords)
        self._reports = self._broker.subscribe(Subscription((self.app.chords,), COUNTER, mode="failover"))
        self._eagerness.run = self.run

    def run(self) -> None:
        """Run what is there until nothing is left, or nothing is due."""
        token = _inside.set("worker")
        try:
            while self._run_once() or self._settles() or self._moves_on():
                pass
        finally:
            _inside.reset(token)

    def _run_once(self) -> bool:
        ran = False
        for subscription, consumer in self._subscribed:
            while (delivery := consumer.receive(0.0)) is not None:
                self._execute(delivery, subscription)
                ran = True
        while (delivery := self._reports.receive(0.0)) is not None:
            self._chords.take(delivery)
            ran = True
        return ran

    def _execute(self, delivery: Delivery, subscription: str) -> None:
        with self._lock:
            self._running += 1
        try:
            self._executor.execute(delivery, subscription)
        except BaseException:  # as in a worker with threads: nobody would get the message again
            delivery.release()
            raise
        finally:
            with self._lock:
                self._running -= 1

    def _settles(self) -> bool:
        """Whether a message that has run is not settled yet, since its result is on its way."""
        with self._lock:
            running = self._running
        if self._broker.store.unsettled(due_by=self.app.clock.now()) <= running + self.asleep()[0]:
            return False
        time.sleep(LOOK_AGAIN)
        return True

    def _moves_on(self) -> bool:
        """Whether the clock went on to when something is due."""
        if self._clock is None:
            return False
        due = self._broker.store.next_instant(after=self._clock.now())
        if due is not None:
            self._clock.move_to(due)
        return due is not None
