"""Which threads of a consumer receive: all of them, or one alone while it is quick enough for all.

Threads that share a queue wake each other for every message and pass the interpreter's lock around, which costs several
times what a short run does. So where runs are many, one thread tries to make them all; the others sleep until a run
takes longer than it takes to wake somebody for the next one (docs/decisions/0039-one-thread-alone.md).
"""

from __future__ import annotations

import threading
import time

SHORT = 0.000_15
"""Seconds that most runs take at most where one thread makes them all."""
_LONGEST = 2 * SHORT
"""What a longer run counts as in the average: that the system had something else to do says nothing of the next run."""
_WEIGHT = 1 / 32
"""Of the newest run in the average."""
_MANY, _WITHIN = 32, 0.1
"""A thread that makes so many runs within so many seconds tries to make them all."""
_FIRST_PAUSE, _LAST_PAUSE = 0.25, 60.0
"""Seconds until the next try when one has failed, twice as many each time."""
_TICK = 0.005
"""Seconds after which the others help if the thread that works alone has not come back from a run."""
_LULL = 20
"""Ticks without a run after which all receive again."""


class Member:
    """One of the threads, and what it knows of its own runs."""

    __slots__ = ("began", "mean", "running", "runs", "since")

    def __init__(self) -> None:
        self.running = False
        self.began = 0.0
        self.mean = 0.0
        self.runs = 0
        self.since = 0.0
        """When it last looked how fast these grow."""


class Crew:
    """The threads of one consumer: each calls `begin` and `end` around a run, then `wait_turn`, and at last `leave`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alone: Member | None = None
        self._woken = 0
        """How often all were."""
        self._watched = False
        self._pause = _FIRST_PAUSE
        self._next_try = 0.0

    @property
    def alone(self) -> Member | None:
        """The thread that makes all runs, if one does."""
        return self._alone

    def begin(self, member: Member) -> None:
        """It has a message."""
        member.running = True
        member.began = time.perf_counter()

    def end(self, member: Member) -> None:
        """It is done with it."""
        now = time.perf_counter()
        member.running = False
        member.runs += 1
        if self._alone is member:
            member.mean += (min(now - member.began, _LONGEST) - member.mean) * _WEIGHT
            if member.mean > SHORT:
                self._give_up(now)
        elif member.runs % _MANY == 0:
            if now - member.since < _WITHIN and now > self._next_try:
                self._try_alone(member)
            member.since = now

    def wait_turn(self, member: Member) -> None:
        """Return when it is to receive."""
        alone = self._alone
        if alone is not None and alone is not member:
            self._sleep()

    def leave(self, member: Member) -> None:
        """It receives no more."""
        if self._alone is member:
            self.wake()

    def wake(self) -> None:
        """Have all receive."""
        with self._changed:
            self._alone = None
            self._woken += 1
            self._changed.notify_all()

    def _try_alone(self, member: Member) -> None:
        with self._changed:
            if self._alone is None:
                member.mean = 0.0
                self._alone = member

    def _give_up(self, now: float) -> None:
        self._next_try = now + self._pause
        self._pause = min(2 * self._pause, _LAST_PAUSE)
        self.wake()

    def _sleep(self) -> None:
        """Until all are woken; one of those that sleep watches the one that works."""
        with self._changed:
            woken = self._woken
            while self._woken == woken and self._alone is not None:
                if self._watched:
                    self._changed.wait()
                else:
                    self._watched = True
                    self._watch(woken)
                    self._watched = False
                    self._changed.notify_all()  # somebody may sleep already while another one works alone

    def _watch(self, woken: int) -> None:
        runs, still = -1, 0
        while self._woken == woken and (alone := self._alone) is not None:
            if alone.runs != runs:
                runs, still = alone.runs, 0
            elif alone.running or still == _LULL:
                self.wake()
                return
            still += 1
            self._changed.wait(_TICK)
