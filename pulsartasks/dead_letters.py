"""Looking at dead letters, and sending them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Consumer, Delivery, Subscription
from pulsartasks.errors import BrokerError, ConfigurationError
from pulsartasks.message import (
    IGNORE_RESULT,
    ORIGIN_MESSAGE_ID,
    REAL_SUBSCRIPTION,
    REAL_TOPIC,
    TASK,
    TASK_ID,
    DeadLetter,
    Publication,
    without_death,
)
from pulsartasks.task import Task
from pulsartasks.topics import DEAD_LETTERS

END_OF_TOPIC = 1.0
"""Seconds without a further message after which all have been seen."""
ARRIVAL = 10.0
"""The same while the broker says that there are more: it is busy, or another look through them holds the others."""
AT_ONCE = 500
"""Dead letters asked for ahead while looking through them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A dead letter as it is kept."""

    delivery: Delivery
    task: str
    story: DeadLetter | None
    """None for a message that somebody else put there."""

    @property
    def id(self) -> str:
        """The task's id, or the message's where it has none, as the log has it; the same each time it is listed."""
        headers = self.delivery.properties
        return headers.get(TASK_ID) or headers.get(ORIGIN_MESSAGE_ID) or self.delivery.message_id


class DeadLetters:
    """The dead letters of some tasks, and of those that share a dead-letter topic with them."""

    def __init__(self, app: PulsarTasks, *tasks: Task[..., Any]) -> None:
        self._app = app
        self._tasks: dict[str, Task[..., Any]] = {}
        """By dead-letter topic, one that uses it."""
        for task in tasks:
            if task.topics.dead_letter is None:
                raise ConfigurationError(f"task {task.name!r} keeps no dead letters (dead_letter=False)")
            self._tasks.setdefault(task.topics.dead_letter, task)
        if not tasks:
            raise ConfigurationError(f"app {app.name!r} has no task that keeps dead letters")

    def list(self) -> Iterator[Kept]:
        """All that are kept, of each topic the oldest first; they stay."""
        with self._consumer() as consumer:
            yield from self._receive(consumer)

    def replay(self, wanted: Callable[[Kept], bool] = lambda _: True) -> Iterator[Kept]:
        """Send those that are `wanted` to their task again, as new messages with all their retries; gives each.

        Each is published and confirmed before it leaves the dead letters, so a crash in between sends it twice, never
        loses it. It goes to its subscription alone, not to the others of an event topic.
        """
        with self._consumer() as consumer:
            for kept in filter(wanted, list(self._receive(consumer))):
                self._app.publish(self._alive_again(kept))
                kept.delivery.acknowledge()
                yield kept

    def _receive(self, consumer: Consumer) -> Iterator[Kept]:
        left = self._count()
        while (delivery := consumer.receive(ARRIVAL if left > 0 else END_OF_TOPIC)) is not None:
            left -= 1
            headers = delivery.properties
            yield Kept(delivery, headers.get(TASK) or self._owner(delivery).name, DeadLetter.from_headers(headers))

    def _count(self) -> int:
        """How many there are; 0 also where the broker does not say."""
        try:
            states = [self._app.broker.inspect(topic) for topic in self._tasks]
        except BrokerError:
            return 0
        found = [state.subscriptions.get(DEAD_LETTERS) for state in states if state is not None]
        return sum(subscription.backlog for subscription in found if subscription is not None)

    def _owner(self, delivery: Delivery) -> Task[..., Any]:
        """The task whose subscription gave the message up; if it does not say, one that has its dead letters there."""
        came_from = delivery.properties.get(REAL_TOPIC), delivery.properties.get(REAL_SUBSCRIPTION)
        for task in self._app.tasks.values():
            topics = task.topics
            homes = [(t, task.subscription) for t in (topics.work, topics.calls, topics.retry, topics.delayed)]
            if topics.dead_letter == delivery.topic and came_from in homes:
                return task
        return self._tasks[delivery.topic]

    def _alive_again(self, kept: Kept) -> Publication:
        # The retry topic belongs to this subscription alone, takes calls and events alike, and in ordered modes leads
        # under the message's key to the call topic.
        properties = without_death(kept.delivery.properties)
        if TASK_ID not in properties:  # what has its id from its first message must take it along; nobody waits for it
            properties |= {TASK_ID: kept.id, IGNORE_RESULT: "1"}
        return Publication(
            topic=self._owner(kept.delivery).topics.retry,
            value=kept.delivery.value,
            key=kept.delivery.key,
            properties=properties,
        )

    @contextmanager
    def _consumer(self) -> Iterator[Consumer]:
        for topic in self._tasks:
            self._app.declare(topic)
        consumer = self._app.broker.subscribe(Subscription(tuple(self._tasks), DEAD_LETTERS, prefetch=AT_ONCE))
        try:
            yield consumer
        finally:
            consumer.close()
