"""When a failed message is tried again, and after how long: pure rules, no clock, no broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

UNKNOWN_TASK_PATIENCE = 600.0
"""Seconds a message of an unknown task is tried again, so that a rolling deploy loses nothing."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The retry options of a task, under Celery's names and with its meaning."""

    max_retries: int | None = 3
    """Attempts after the first; None: without end."""
    autoretry_for: tuple[type[BaseException], ...] = ()
    """Exceptions that are retried without the task asking for it."""
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_backoff: bool | float = False
    """True: 1 s, 2 s, 4 s, ...; a number: that many seconds instead of 1; False: always `default_retry_delay`."""
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    """Spread retries evenly over (0, backoff], so that what failed together does not come back together."""
    default_retry_delay: float = 1.0

    def covers(self, error: BaseException) -> bool:
        """Whether `error` is retried without the task asking.

        >>> RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,)).covers(FileNotFoundError())
        False
        """
        return isinstance(error, self.autoretry_for) and not isinstance(error, self.dont_autoretry_for)

    def has_left(self, retries: int) -> bool:
        """Whether one more attempt is allowed after `retries` of them.

        >>> RetryPolicy(max_retries=2).has_left(1), RetryPolicy(max_retries=2).has_left(2)
        (True, False)
        """
        return self.max_retries is None or retries < self.max_retries

    def delay(self, retries: int, random: Callable[[], float]) -> float:
        """Seconds to wait before attempt `retries` + 1; `random` gives numbers in [0, 1).

        >>> [RetryPolicy(retry_backoff=True, retry_jitter=False).delay(n, random=lambda: 0) for n in range(5)]
        [1.0, 2.0, 4.0, 8.0, 16.0]
        >>> RetryPolicy(retry_backoff=3, retry_backoff_max=10, retry_jitter=False).delay(5, random=lambda: 0)
        10.0
        >>> RetryPolicy(retry_backoff=True).delay(3, random=lambda: 0.5)
        4.0
        """
        if not self.retry_backoff:
            return self.default_retry_delay
        delay = backoff(retries, factor=float(self.retry_backoff), maximum=self.retry_backoff_max)
        # 1 - random is in (0, 1]: a delay of nothing would make the jitter a hot loop.
        return delay * (1 - random()) if self.retry_jitter else delay


def backoff(retries: int, *, factor: float = 1.0, maximum: float = 600.0) -> float:
    """``factor * 2 ** retries`` seconds, at most `maximum`, for any number of retries.

    >>> backoff(3), backoff(10_000)
    (8.0, 600.0)
    """
    return float(min(maximum, factor * 2.0 ** min(retries, 64)))


def unknown_task_delay(age: float, retries: int) -> float | None:
    """Seconds until a message of an unknown task, published `age` seconds ago, is tried again; None: give it up.

    >>> unknown_task_delay(age=3, retries=2), unknown_task_delay(age=601, retries=12)
    (4.0, None)
    """
    return None if age > UNKNOWN_TASK_PATIENCE else backoff(retries, maximum=30.0)
