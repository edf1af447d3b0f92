"""Whose results are not to be had any more: ids on a topic, since nothing can be taken out of a log.

Each process reads it once, and at each look-up that finds something what is new on it; that is little.
"""

from __future__ import annotations

from collections.abc import Collection

from pulsartasks.brokers.base import Broker, Delivery
from pulsartasks.clock import Clock
from pulsartasks.log import TopicLog
from pulsartasks.message import TASK_ID, Publication

REMEMBERED = 500_000
"""Ids that a process knows of, in some 60 MB; beyond that the oldest count no more."""


class Forgotten:
    """The ids on `topic`, of `window` seconds; safe to use from several threads."""

    def __init__(self, broker: Broker, topic: str, *, window: float, clock: Clock) -> None:
        self._window = window
        self._ids: dict[str, None] = {}
        self._log = TopicLog(broker, topic, window=lambda: window, learn=self._learn, clock=clock, again=True)

    def add(self, task_id: str) -> None:
        """Have it forgotten; every look-up that begins when this returns obeys."""
        self._log.append(Publication(self._log.topic, b"{}", task_id, {TASK_ID: task_id}))

    def all(self) -> Collection[str]:
        """All that were added before this call."""
        self._log.catch_up()
        return self._ids

    def expire(self) -> None:
        """Let go of what is older than the window."""
        self._log.trim(self._window)

    def close(self) -> None:
        self._log.close()

    def _learn(self, record: Delivery) -> None:
        self._ids[record.properties.get(TASK_ID, "")] = None
        if len(self._ids) > REMEMBERED:
            del self._ids[next(iter(self._ids))]
