"""Keeping a subscription's concurrency together where several consumers serve it."""

from __future__ import annotations

import threading
from collections import deque


class Concurrency:
    """Lets so many threads in at once, and the others in the order in which they asked.

    A `threading.Semaphore` keeps no order: a thread that leaves and comes back at once passes the one that waits, so
    that with one run at a time a consumer with much to do would keep the other one from ever running anything.

    While there is room no lock is taken: who leaves first makes room and then looks whether somebody waits, who waits
    first joins the line and then looks for room, so that one of the two sees the other.
    """

    def __init__(self, runs: int) -> None:
        self._room = [None] * runs
        self._line: deque[threading.Lock] = deque()
        """A held lock for each that waits; released when it is its turn."""
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._line)

    @property
    def full(self) -> bool:
        """Whether somebody who came now would have to wait."""
        return not self._room or bool(self._line)

    def enter(self) -> bool:
        """Wait for one's turn; False for who has to wait, or waits, when nothing begins any more."""
        if not self._line:
            try:
                self._room.pop()
            except IndexError:
                pass
            else:
                return True
        return self._wait()

    def leave(self) -> None:
        """After each `enter` that let in."""
        self._room.append(None)
        if self._line:
            with self._lock:
                self._admit()

    def stop(self) -> None:
        """From now on let nobody in who has to wait; who waits already is sent away."""
        with self._lock:
            self._stopped = True
            while self._line:
                self._line.popleft().release()

    def _wait(self) -> bool:
        turn = threading.Lock()
        turn.acquire()
        with self._lock:
            if self._stopped:
                return False
            self._line.append(turn)
            self._admit()
        turn.acquire()
        return not self._stopped

    def _admit(self) -> None:
        while self._line:
            try:
                self._room.pop()
            except IndexError:  # who took it without the lock sees the line when it leaves
                return
            self._line.popleft().release()
