"""Order per key under concurrency: a lane for each key, of which one message runs at a time.

A message whose attempt is to be repeated stays at the head of its lane until its delay is over; the key waits, others
go on. Not thread-safe by itself: `OrderedConsumer` holds its lock around every call.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from pulsartasks.brokers.base import Delivery


@dataclass(slots=True, eq=False)
class Held:
    """A received message in its lane."""

    delivery: Delivery
    lane: Hashable
    retries: int = 0
    """Attempts made here, on top of those its headers tell of."""


@dataclass(slots=True)
class _Lane:
    waiting: deque[Held] = field(default_factory=deque)
    busy: bool = False
    """Its head runs, or waits for its next attempt."""


class Lanes:
    """The messages that one consumer holds, by lane.

    Args:
        limit: messages held at most; `full` says that no more should be received until some are settled.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._lanes: dict[Hashable, _Lane] = {}
        self._runnable: deque[Held] = deque()
        self._postponed: list[tuple[float, int, Held]] = []
        self._parked: list[tuple[float, int, Held]] = []
        self._ticket = 0

    @property
    def full(self) -> bool:
        return self._count >= self._limit

    def put(self, held: Held) -> None:
        """Add a received message at the end of its lane."""
        self._count += 1
        self._join(held)

    def park(self, held: Held, until: float) -> None:
        """Hold a received message that joins its lane at the instant `until`; the lane goes on meanwhile."""
        self._count += 1
        heapq.heappush(self._parked, (until, self._next_ticket(), held))

    def take(self, now: float) -> Held | None:
        """The next message that may run at the instant `now`; its lane is busy until `done` or `postpone`."""
        while self._parked and self._parked[0][0] <= now:
            self._join(heapq.heappop(self._parked)[2])
        while self._postponed and self._postponed[0][0] <= now:
            self._runnable.append(heapq.heappop(self._postponed)[2])
        return self._runnable.popleft() if self._runnable else None

    def done(self, held: Held) -> None:
        """The message is settled: the next one of its lane may run."""
        self._count -= 1
        lane = self._lanes[held.lane]
        if lane.waiting:
            self._runnable.append(lane.waiting.popleft())
        else:
            del self._lanes[held.lane]

    def postpone(self, held: Held, until: float) -> None:
        """The message runs again, not before the instant `until`; its lane waits for it."""
        heapq.heappush(self._postponed, (until, self._next_ticket(), held))

    def next_due(self) -> float | None:
        """When the next postponed or parked message may run; None if there is none."""
        return min((heap[0][0] for heap in (self._postponed, self._parked) if heap), default=None)

    def asleep(self, now: float) -> int:
        """Messages that wait for an instant after `now`, and those behind them in their lanes."""
        parked = sum(until > now for until, _, _ in self._parked)
        postponed = [held for until, _, held in self._postponed if until > now]
        return parked + len(postponed) + sum(len(self._lanes[held.lane].waiting) for held in postponed)

    def _join(self, held: Held) -> None:
        lane = self._lanes.setdefault(held.lane, _Lane())
        if lane.busy:
            lane.waiting.append(held)
        else:
            lane.busy = True
            self._runnable.append(held)

    def _next_ticket(self) -> int:
        """What tells entries of the same instant apart, since a heap must never compare messages."""
        self._ticket += 1
        return self._ticket
