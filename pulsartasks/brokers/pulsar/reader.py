"""A reader of Pulsar: a topic from some instant on, without a subscription left behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pulsar

from pulsartasks.brokers.base import Delivery, Reader
from pulsartasks.brokers.pulsar.connection import CLOSE_TIMEOUT, Connection, run_within
from pulsartasks.brokers.pulsar.consumer import WAIT, TopicNames, to_delivery
from pulsartasks.brokers.pulsar.errors import translated
from pulsartasks.errors import ClosedError

_ARRIVAL = 10.0
"""Seconds within which a message arrives that the broker says is there."""
_MOMENT = 0.001
"""Seconds in which the client gives what it has received already."""


class PulsarReader(Reader):
    """A reader that was opened at the topic's end or, with `since`, at its beginning."""

    def __init__(
        self,
        connection: Connection,
        reader: Any,
        on_close: Callable[[PulsarReader], None],
        *,
        since: float | None = None,
        stored: bool = True,
    ) -> None:
        self._connection = connection
        self._reader = connection.keep(reader)
        self._on_close = on_close
        self._names = TopicNames()
        self._since = milliseconds(since)
        self._stored = stored
        self._lock = threading.Lock()
        self._closed = False

    def seek(self) -> None:
        """Go to the instant to begin at, where something older may be stored."""
        if self._since and self._stored:
            try:
                with translated("find an instant in the topic"):
                    self._reader.seek(self._since)
            except BaseException:
                self.close()
                raise

    def receive(self, timeout: float) -> Delivery | None:
        to_the_end = timeout <= 0 and self._stored  # what is not stored has no end to look for
        deadline = time.monotonic() + (_ARRIVAL if to_the_end else max(timeout, _MOMENT))
        while True:
            self._connection.check()
            if self._closed:
                raise ClosedError("the reader was closed")
            if to_the_end and not self._more():
                return None
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            message = self._next(min(int(remaining * 1000) + 1, WAIT))
            # What was on its way before the seek took effect, or stands out of order, is not wanted.
            if message is not None and message.publish_timestamp() >= self._since:
                return to_delivery(message, self._names)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._on_close(self)
        if not self._connection.inherited:
            run_within(CLOSE_TIMEOUT, self._reader.close)
            self._connection.forget(self._reader)

    def _more(self) -> bool:
        with translated("look for the end of the topic"):
            return bool(self._reader.has_message_available())

    def _next(self, wait: int) -> Any:
        """A message of the client, or None."""
        with translated("read"):
            try:
                return self._reader.read_next(wait)
            except pulsar.Timeout:
                return None


def milliseconds(instant: float | None) -> int:
    """The first millisecond that is not before `instant`, as Pulsar counts them; 0 without one."""
    return math.ceil((instant or 0) * 1000)
