"""The time, as an argument: code that asks for it takes a `Clock`, so a test can hold the hands."""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """The present instant in seconds since the epoch (UTC)."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()


class FrozenClock:
    """A clock that stands still until it is moved, for tests; it shows whole milliseconds.

    Args:
        at: where it begins, an instant that knows its time zone; default: now.

    >>> clock = FrozenClock(datetime.fromisoformat("2026-03-29T00:30:00+00:00"))
    >>> clock.move(timedelta(hours=1))
    >>> datetime.fromtimestamp(clock.now()).astimezone() == datetime.fromisoformat("2026-03-29T01:30:00+00:00")
    True
    """

    def __init__(self, at: datetime | None = None) -> None:
        if at is not None and at.tzinfo is None:
            raise ValueError(f"{at} has no time zone; write datetime(..., tzinfo=timezone.utc)")
        self._milliseconds = _whole(time.time() if at is None else at.timestamp())

    def now(self) -> float:
        return self._milliseconds / 1000

    def move(self, by: float | timedelta) -> None:
        """Go on by so many seconds."""
        self.move_to(self.now() + (by.total_seconds() if isinstance(by, timedelta) else by))

    def move_to(self, instant: float) -> None:
        """Go to an instant, in seconds since the epoch; never back."""
        self._milliseconds = max(self._milliseconds, _whole(instant))


def _whole(instant: float) -> int:
    return math.ceil(round(instant * 1000, 3))
