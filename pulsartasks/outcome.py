"""What became of one delivery: exactly one of these, and each is settled in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

Reason = Literal["failed", "rejected", "unreadable", "unknown task", "crashed"]
Revocation = Literal["revoked", "expired", "terminated"]


class Succeeded(msgspec.Struct, frozen=True):  # a Struct, since one is made for every message
    """The task returned `value`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Retried:
    """The message runs again after `delay` seconds, because of `error`."""

    error: BaseException
    delay: float


@dataclass(frozen=True, slots=True)
class Died:
    """The message is given up and kept as a dead letter, because of `error`."""

    error: BaseException
    reason: Reason


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing is kept of it: its work is done already (``done``), another copy of this attempt ran (``copy``), or the
    task said so (``ignored``).
    """

    reason: Literal["done", "copy", "ignored"]


@dataclass(frozen=True, slots=True)
class Revoked:
    """The message is not run (``terminated``: not to its end), and nothing is kept of it but this as its result."""

    reason: Revocation


@dataclass(frozen=True, slots=True)
class Replaced:
    """The task's place is taken by `canvas`, whose last call gives its result."""

    canvas: Any


Unsuccessful: TypeAlias = "Retried | Died | Skipped | Revoked | Replaced"
"""All but a success."""
Outcome: TypeAlias = "Succeeded | Unsuccessful"
