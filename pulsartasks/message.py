"""What travels: the bytes of one call or event, and the headers that say what they are.

Headers are message properties, readable in any Pulsar tool; the value is plain JSON. A call is
``{"args": [...], "kwargs": {...}}``, an event is its payload. Headers of a retried or dead message bear the Java
client's names (RetryMessageUtil of apache/pulsar), so both sides understand each other's messages.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from pulsartasks.serializers import UNREADABLE

TASK = "pt-task"
TASK_ID = "pt-id"
REPLY_TO = "pt-reply-to"
ETA = "pt-eta"
"""Milliseconds since the epoch before which the message must not run."""
CLAIM = "pt-claim"
"""Where the value is, if it is in a blob store: JSON with `key`, `size` and `sha256`."""
EXPIRES = "pt-expires"
"""Milliseconds since the epoch from which on no attempt is begun."""
TICK = "pt-tick"
"""Which entry of a schedule sent the message, and for which instant: ``nightly@1688062274000``."""
CANVAS = "pt-canvas"
"""``1`` in a call that something comes after, which its value tells under ``then``."""
SINGLE = "pt-single"
"""``1`` in a call that may have been sent twice under its id: of its messages the first one runs, and no other."""
UNIQUE = "pt-unique"
"""What the call had to be the only one of."""
IGNORE_RESULT = "pt-ignore-result"
"""``1`` or ``0`` in a call that says itself whether its result is kept, instead of its task."""
STAMPS = "pt-stamps"
"""What the call was labelled with: a JSON object."""
RESERVED_PREFIX = "pt-"

ATTEMPT = "RECONSUMETIMES"
"""How many times the message was tried again, so 1 in the first copy on a retry topic."""
DELAY = "DELAY_TIME"
"""Milliseconds that the last retry waits."""
REAL_TOPIC = "REAL_TOPIC"
REAL_SUBSCRIPTION = "REAL_SUBSCRIPTION"
ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_ID"
OLD_ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_IDY_TIME"
"""The same, as Java's client once wrote it by mistake, and others still write it."""

REASON = "pt-reason"
EXCEPTION_TYPE = "pt-exception-type"
EXCEPTION_MESSAGE = "pt-exception-message"
TRACEBACK = "pt-traceback"
ATTEMPTS = "pt-attempts"
WORKER = "pt-worker"
FAILED_AT = "pt-failed-at"
PUBLISHED_AT = "pt-published-at"

LONGEST_ID = 512
"""Characters of a task's id, or of its name in a log: whoever writes a longer one means no good, or made a mistake."""
LATEST_ETA = 4_102_444_800.0
"""The year 2100 in seconds since the epoch: what is to run later has its eta in the wrong unit."""
CUT = "pt-cut"
"""In a dead letter that would have been too large: how many bytes its value had. What is there is its beginning."""

_DEATH = (REASON, EXCEPTION_TYPE, EXCEPTION_MESSAGE, TRACEBACK, ATTEMPTS, WORKER, FAILED_AT, PUBLISHED_AT, CUT)
_RETRY = (ATTEMPT, DELAY, REAL_TOPIC, REAL_SUBSCRIPTION, ORIGIN_MESSAGE_ID, OLD_ORIGIN_MESSAGE_ID, ETA, EXPIRES)
OURS = frozenset(
    (TASK, TASK_ID, REPLY_TO, CLAIM, UNIQUE, TICK, CANVAS, SINGLE, IGNORE_RESULT, STAMPS, *_DEATH, *_RETRY)
)
"""All headers that are not the caller's own."""


class Publication(msgspec.Struct, frozen=True, gc=False):  # a Struct, since one is made for every message
    """A message on its way to the broker."""

    topic: str
    """Full name, e.g. ``persistent://public/default/shop.pay``."""
    value: bytes
    key: str | None = None
    """What order is kept by, and what partitions are chosen by."""
    properties: Mapping[str, str] = {}
    deliver_at: float | None = None
    """Seconds since the epoch before which the broker holds the message; None: at once."""
    producer: str | None = None
    """Who publishes it, one process at a time, if the broker is to know it from `sequence`."""
    sequence: int | None = None
    """1 or more, rising: what is not above the last one of its producer on the topic was stored before."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a message was given up, as its headers tell."""

    reason: str
    """``failed``, ``rejected``, ``unreadable``, ``unknown task`` or ``crashed``."""
    exception_type: str
    exception_message: str
    traceback: str
    attempts: int
    """How often the message was run."""
    worker: str
    failed_at: str
    """Instant of the last attempt, ISO 8601 in UTC."""
    published_at: str
    topic: str
    """Full name of the topic the message was given up on."""
    subscription: str

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> DeadLetter | None:
        """The story told by `headers`; None if the message is not a dead letter of ours."""
        if REASON not in headers:
            return None
        return cls(
            reason=headers[REASON],
            exception_type=headers.get(EXCEPTION_TYPE, ""),
            exception_message=headers.get(EXCEPTION_MESSAGE, ""),
            traceback=headers.get(TRACEBACK, ""),
            attempts=read_int(headers, ATTEMPTS),
            worker=headers.get(WORKER, ""),
            failed_at=headers.get(FAILED_AT, ""),
            published_at=headers.get(PUBLISHED_AT, ""),
            topic=headers.get(REAL_TOPIC, ""),
            subscription=headers.get(REAL_SUBSCRIPTION, ""),
        )


class Request(msgspec.Struct, frozen=True):  # a Struct, since one is made for every message: ten times faster
    """The message behind this run, under Celery's name for it."""

    id: str = ""
    task: str = ""
    topic: str = ""
    """Full name of the topic it was received on."""
    subscription: str = ""
    key: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    retries: int = 0
    """0 in the first attempt."""
    headers: Mapping[str, str] = {}
    """All message properties."""
    published_at: float = 0.0
    """Seconds since the epoch."""
    called_directly: bool = True
    """The function was called as a plain function: there is no message."""

    @property
    def stamps(self) -> dict[str, Any]:
        """What its call was stamped with; see `Canvas.stamp`."""
        with suppress(*UNREADABLE):  # anybody may have written it
            return msgspec.json.decode(self.headers.get(STAMPS, "{}"), type=dict[str, Any])
        return {}

    @property
    def stamped_headers(self) -> list[str]:
        """The names of `stamps`."""
        return list(self.stamps)

    @property
    def dead_letter(self) -> DeadLetter | None:
        """Why the message was given up, when it comes from a dead-letter topic."""
        return DeadLetter.from_headers(self.headers)


def without_death(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message that is to live again: neither retries, nor an old expiry, nor the story of its end.

    It is a message of its own, so it is not kept from running by its first one either (`SINGLE`).

    >>> without_death({"pt-task": "add", "RECONSUMETIMES": "3", "pt-reason": "failed", "colour": "red"})
    {'pt-task': 'add', 'colour': 'red'}
    """
    return {name: value for name, value in headers.items() if name not in (*_DEATH, *_RETRY, SINGLE)}


def without_retries(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message that was given up: who handles it next has retries of its own.

    >>> without_retries({"pt-task": "add", "RECONSUMETIMES": "3", "pt-eta": "1688062274710", "REAL_TOPIC": "x"})
    {'pt-task': 'add', 'REAL_TOPIC': 'x'}
    """
    return {name: value for name, value in headers.items() if name not in (ATTEMPT, DELAY, ETA, EXPIRES)}


def milliseconds(instant: float) -> str:
    """The first whole millisecond that is not before `instant` (seconds since the epoch): a delay is never early.

    >>> milliseconds(1688062274.7101), milliseconds(1688062274.711)
    ('1688062274711', '1688062274711')
    """
    return str(math.ceil(round(instant * 1000, 3)))  # a float's last bit must not make it a millisecond more


def read_int(headers: Mapping[str, str], name: str) -> int:
    """The header as a number; 0 where it is absent or not one, since other languages write headers too.

    >>> read_int({"RECONSUMETIMES": "2"}, "RECONSUMETIMES"), read_int({"RECONSUMETIMES": "two"}, "RECONSUMETIMES")
    (2, 0)
    """
    text = headers.get(name)
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0


def read_eta(headers: Mapping[str, str]) -> float:
    """The instant before which the message must not run, in seconds since the epoch; 0.0 if it may run at once.

    What is no instant, or beyond `LATEST_ETA`, is not waited for; `untrue` tells of the latter.

    >>> read_eta({"pt-eta": "1688062274710"}), read_eta({"pt-eta": "soon"}), read_eta({"pt-eta": "9" * 18})
    (1688062274.71, 0.0, 0.0)
    """
    eta = read_int(headers, ETA) / 1000
    return eta if eta <= LATEST_ETA else 0.0


def untrue(headers: Mapping[str, str]) -> str | None:
    """What is wrong with headers that no call has, whose message therefore is not run; None for all others.

    >>> untrue({"pt-eta": "1688062274710000"})
    'its pt-eta 1688062274710000 is not in milliseconds since 1970, or is beyond the year 2100'
    """
    if len(headers.get(TASK_ID, "")) > LONGEST_ID:
        return f"its {TASK_ID} has {len(headers[TASK_ID]):,} characters; at most {LONGEST_ID} make sense"
    eta = headers.get(ETA)
    if eta and eta.isascii() and eta.isdigit() and (len(eta) > 18 or int(eta) / 1000 > LATEST_ETA):
        return f"its {ETA} {eta[:LONGEST_ID]} is not in milliseconds since 1970, or is beyond the year 2100"
    return None


def new_task_id(now: float | None = None) -> str:
    """A fresh id that sorts by time (UUIDv7, RFC 9562), so that a result can be looked up from the instant in it."""
    return _uuid7(int((time.time() if now is None else now) * 1000), os.urandom(10).hex())


def tick_id(app: str, entry: str, instant: int) -> str:
    """The id of the call that an app's schedule makes for an entry's instant (milliseconds since the epoch).

    Whoever sends it, and however often, it is the same; and its result can be looked up from that instant on.

    >>> tick_id("shop", "nightly", 1688096058518)
    '01890a5d-ac96-7323-9cd6-4e2b82f29bad'
    """
    return _uuid7(instant, hashlib.sha256(f"{app}\n{entry}\n{instant}".encode()).hexdigest())


def _uuid7(milliseconds: int, random: str) -> str:
    instant = f"{milliseconds:012x}"
    variant = "89ab"[int(random[3], 16) % 4]  # put together as text, since a UUID of the library's takes twice as long
    return f"{instant[:8]}-{instant[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"


def task_id_instant(task_id: str) -> float | None:
    """When the id was made, in seconds since the epoch; None for an id that the caller chose freely.

    >>> task_id_instant("01890a5d-ac96-774b-bcce-b302099a8057")
    1688096058.518
    >>> task_id_instant("order-17")
    """
    try:
        uuid = UUID(task_id)
    except ValueError:
        return None
    return (uuid.int >> 80) / 1000 if uuid.version == 7 else None
