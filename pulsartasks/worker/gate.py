"""Who may run beside whom: everybody, except that a suspect runs alone in its process."""

from __future__ import annotations

import threading

PATIENCE = 10.0
"""Seconds for which all wait so that a suspect can run alone; then others go on for as long, and it asks again."""


class Gate:
    """Knows what runs in a process; all threads pass through it.

    They take no lock while it is open: each first says that it is inside and then looks whether the gate is closed,
    while a suspect first closes it and then looks who is inside, so that one of the two sees the other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside: set[int] = set()  # of thread ids
        self._closed = False
        self._stopped = False

    @property
    def closed(self) -> bool:
        """Whether a suspect runs alone, or is about to."""
        return self._closed

    def enter(self) -> bool:
        """Wait until no suspect runs; False if nothing begins any more."""
        thread = threading.get_ident()
        self._inside.add(thread)
        while self._closed:
            self.leave()
            with self._changed:
                self._changed.wait_for(lambda: not self._closed or self._stopped)
            if self._stopped:
                return False
            self._inside.add(thread)
        return True

    def leave(self) -> None:
        self._inside.discard(threading.get_ident())
        if self._closed:
            with self._changed:
                self._changed.notify_all()

    def close(self) -> bool:
        """Wait until nothing else runs, and let nothing begin until `open`; False if nothing begins any more."""
        while not self._try_to_close():
            with self._changed:
                # What runs may itself wait for something that waits here.
                if self._changed.wait_for(lambda: self._stopped, PATIENCE):
                    return False
        return True

    def open(self) -> None:
        with self._changed:
            self._closed = self._stopped
            self._changed.notify_all()

    def stop(self) -> None:
        """From now on nothing begins: neither what waits here nor what comes."""
        with self._changed:
            self._closed = self._stopped = True
            self._changed.notify_all()

    def _try_to_close(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed or self._stopped)  # closed by another suspect
            if self._stopped:
                return False
            self._closed = True
            alone = self._changed.wait_for(lambda: not self._inside or self._stopped, PATIENCE)
            if alone and not self._stopped:
                return True
            self._closed = self._stopped
            self._changed.notify_all()
            return False
