"""What each task of a run is, told by its number alone, so that those who publish, run and check it agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

RETRY_DELAY = 0.3
"""Seconds between a failed attempt and the next."""
KEYS = 24


@dataclass(frozen=True, slots=True)
class Call:
    """One task to be called."""

    key: str | None = None
    """Its order is kept within this key, by number; None: there is no order."""
    failures: int = 0
    """Attempts that fail before one succeeds."""
    countdown: float = 0.0
    seconds: float = 0.005
    """How long an attempt takes."""


Plan = Callable[[int], Call]


def mixed(number: int) -> Call:
    """Of ten, four plain ones, four with a key (a few of them retried in their place), one delayed, one retried."""
    tens, unit = divmod(number, 10)
    if unit < 4:
        return Call()
    if unit < 8:
        return Call(key=f"key-{(4 * tens + unit) % KEYS}", failures=int(unit == 4 and tens % 10 == 0))
    if unit == 8:
        return Call(countdown=1.0 + tens % 3)
    return Call(failures=1)


def steady(number: int) -> Call:
    """Plain ones of 50 ms."""
    return Call(seconds=0.05)


PARTS = 20
"""Of each chord."""
CHORD = PARTS + 1
"""Numbers that a chord has: its parts, and last what follows them, its body or its errback."""


def chords(number: int) -> Call:
    """Parts of 50 ms and what follows them."""
    return Call(seconds=0.005 if number % CHORD == PARTS else 0.05)


def fails(number: int) -> bool:
    """Whether a part fails, as one of every tenth chord does."""
    chord, part = divmod(number, CHORD)
    return chord % 10 == 9 and part == chord % PARTS


def keyed(number: int) -> Call:
    """Three of four with a key."""
    return Call(key=None if number // KEYS % 4 == 3 else f"key-{number % KEYS}", seconds=0.0)


PLANS: Mapping[str, Plan] = {"mixed": mixed, "steady": steady, "chords": chords, "keyed": keyed}
