"""Keeping a task's ``rate_limit`` in a worker process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class RateLimit:
    """Lets one of several threads go on every `interval` seconds, evenly.

    What must wait stays with the broker: a thread takes its turn first and then receives. So a worker holds no messages
    that another one could run.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._lock = threading.Lock()
        self._next = 0.0

    def take(self, receive: Callable[[], T | None], stopping: threading.Event) -> T | None:
        """What `receive` gives when it is this thread's turn; a turn that brings nothing is not used up.

        None if nothing came, or if `stopping` was set meanwhile.
        """
        with self._lock:
            if stopping.wait(max(0.0, self._next - time.monotonic())):
                return None
            received = receive()
            if received is not None:
                self._next = time.monotonic() + self._interval
            return received
