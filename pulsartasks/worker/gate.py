"""Who may run beside whom: everybody, except that a suspect runs alone in its process."""

from __future__ import annotations

import threading
import time

PATIENCE = 10.0
"""Seconds for which all wait so that a suspect can run alone; then others go on for as long, and it asks again."""


class Gate:
    """Counts what runs in a process; all threads pass through it."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def enter(self) -> None:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        """Wait until nothing else runs, and let nothing begin until `open`."""
        while not self._try_to_close():
            # What runs may itself wait for something that waits here.
            time.sleep(PATIENCE)

    def open(self) -> None:
        with self._changed:
            self._closed = False
            self._changed.notify_all()

    def _try_to_close(self) -> bool:
        with self._changed:
            while self._closed:  # by another suspect
                self._changed.wait()
            self._closed = True
            if self._changed.wait_for(lambda: not self._inside, PATIENCE):
                return True
            self._closed = False
            self._changed.notify_all()
            return False
