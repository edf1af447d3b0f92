"""Whose results are not to be had any more: ids on a topic, since nothing can be taken out of a log.

Each process reads it once, and at each look-up that finds something what is new on it; that is little.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from pulsartasks.brokers.base import Broker, Reader
from pulsartasks.clock import Clock
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import TASK_ID, Publication
from pulsartasks.topics import KEEPER

REMEMBERED = 500_000
"""Ids that a process knows of, in some 60 MB; beyond that the oldest count no more."""


class Forgotten:
    """The ids on `topic`, of `window` seconds; safe to use from several threads."""

    def __init__(self, broker: Broker, topic: str, *, window: float, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._topic = topic
        self._window = window
        self._lock = threading.Lock()
        self._ids: dict[str, None] = {}
        self._reader: Reader | None = None
        self._declared = False

    def add(self, task_id: str) -> None:
        """Have it forgotten; every look-up that begins when this returns obeys."""
        self._declare()
        self._broker.publish(Publication(self._topic, b"{}", task_id, {TASK_ID: task_id}))

    def all(self) -> Collection[str]:
        """All that were added before this call."""
        with self._lock:
            try:
                if self._reader is None:
                    self._declare()
                    self._reader = self._broker.read(self._topic, since=self._clock.now() - self._window)
                while (delivery := self._reader.receive(0.0)) is not None:
                    self._ids[delivery.properties.get(TASK_ID, "")] = None
            except PulsarTasksError:
                self._close()
                raise
            while len(self._ids) > REMEMBERED:
                del self._ids[next(iter(self._ids))]
            return self._ids

    def expire(self) -> None:
        """Let go of what is older than the window."""
        self._declare()
        self._broker.trim(self._topic, KEEPER, before=self._clock.now() - self._window)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _declare(self) -> None:
        if not self._declared:
            self._broker.declare(self._topic, [KEEPER])
            self._declared = True
