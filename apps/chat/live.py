"""Waking the open streams of one web process when a thread has changed.

One tail of `thread_changed` feeds every stream of the process. It is a hint and no more: what to show is always read
from the database, where each stream looks again at every heartbeat. A lost hint costs seconds, never a message.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from apps.events import ThreadChanged
from pulsartasks import PulsarTasksError, Topic

log = structlog.get_logger(__name__)

RECONNECT_DELAY = 1.0


class Listener:
    """One open stream's ear."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.dismissed = False
        """Set when another stream needs its place; the browser will come back."""
        self._woken = threading.Event()

    def wait(self, timeout: float) -> bool:
        """Sleep until something may have changed; False after `timeout` seconds of silence."""
        heard = self._woken.wait(timeout)
        self._woken.clear()
        return heard

    def wake(self) -> None:
        self._woken.set()

    def dismiss(self) -> None:
        self.dismissed = True
        self.wake()


class Live:
    """The listeners of this process and the thread that wakes them, which starts with the first of them.

    It must not start earlier: the server forks its workers, and a thread or a broker connection does not survive that.
    """

    def __init__(self, topic: Topic[ThreadChanged], limit: int) -> None:
        self._topic = topic
        self._limit = limit
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @contextmanager
    def listening(self, user_id: str) -> Iterator[Listener]:
        """An ear for one stream. When the process has no room for another one, the oldest stream has to go."""
        listener = Listener(user_id)
        with self._lock:
            if len(self._listeners) >= self._limit:
                self._listeners.pop(0).dismiss()
            self._listeners.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="thread-changed", daemon=True)
                self._thread.start()
        try:
            yield listener
        finally:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

    def close(self) -> None:
        """Dismiss every stream and stop following; for tests and a clean end of the process."""
        self._closing.set()
        with self._lock:
            for listener in self._listeners:
                listener.dismiss()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._closing.is_set():
            self._follow_until_trouble()
            self._closing.wait(RECONNECT_DELAY)

    def _follow_until_trouble(self) -> None:
        try:
            with self._topic.tail() as tail:
                self._wake(None)  # something may have happened while nobody listened
                while not self._closing.is_set():
                    event = tail.receive(timeout=0.5)
                    if event is not None:
                        self._wake(event)
        except PulsarTasksError as exc:  # the broker is away: until it is back, the heartbeats do without it
            log.warning("thread_changes.interrupted", error=str(exc))

    def _wake(self, event: ThreadChanged | None) -> None:
        with self._lock:
            for listener in self._listeners:
                if event is None or listener.user_id in event.members:
                    listener.wake()
