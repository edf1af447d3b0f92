"""How often a task may begin: ``rate_limit="100/m"``, as Celery writes it."""

from __future__ import annotations

import math

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def interval(rate: float | str) -> float:
    """Seconds from one run's beginning to the next under a rate limit: a number for each second, or with its unit.

    >>> interval(4), interval("10/s"), interval("100/m"), interval("5/h"), interval("0.5")
    (0.25, 0.1, 0.6, 720.0, 2.0)

    Raises:
        ValueError: it is no such rate, or not more than 0.
    """
    number, _, unit = rate.partition("/") if isinstance(rate, str) else (rate, "", "s")
    count = float(number)
    if unit not in ("", *_SECONDS) or not 0 < count < math.inf:
        raise ValueError(f"{rate!r} is no rate")
    return _SECONDS[unit or "s"] / count
