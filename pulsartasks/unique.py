"""Unique calls: of those that have a key in common one is sent, and the others get its handle.

Each caller appends a claim to a log and reads the log up to there: the first claim that counts has the key. It counts
for a minute, in which its call is to be sent, and then until the call has ended, which the worker writes down, or for
the task's ``unique_for``. Time is what the log says it is, so every process comes to the same conclusion.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import msgspec
import structlog
from typing_extensions import assert_never

from pulsartasks.brokers.base import Broker, Delivery
from pulsartasks.clock import Clock
from pulsartasks.errors import BrokerError, PublishTimeoutError
from pulsartasks.log import TopicLog
from pulsartasks.message import Publication
from pulsartasks.serializers import UNREADABLE

CLAIM_FOR = 60.0
"""Seconds for which a claim counts whose call was not sent yet: its caller may have died, or waits for the broker."""
_SWEEP = 10_000
"""Keys from which on those are swept out that nobody has any more."""

_log = structlog.get_logger("pulsartasks")


class Record(msgspec.Struct, frozen=True):
    """One line of the log."""

    kind: Literal["claim", "sent", "released"]
    task: str
    key: str
    id: str
    """Of the call."""
    seconds: float = 0.0
    """For which the key is taken at most."""
    claim: str = msgspec.field(default_factory=lambda: uuid4().hex)
    """Tells claims apart though their calls have the same id."""


_decode = msgspec.json.Decoder(Record).decode


@dataclass(slots=True)
class _Holder:
    """Who has a key."""

    record: Record
    until: float
    """Seconds since the epoch."""


class Holders:
    """Who has which key, as the records tell; `at` is when one was published.

    >>> holders = Holders()
    >>> first, second = (Record("claim", "report", "may", id, id, 600.0) for id in ("1", "2"))
    >>> holders.apply(first, at=100.0).id, holders.apply(second, at=101.0).id
    ('1', '1')
    >>> holders.apply(second, at=161.0).id  # the first one was never sent
    '2'
    """

    def __init__(self) -> None:
        self._holders: dict[tuple[str, str], _Holder] = {}
        self._released: dict[str, float] = {}
        """Calls that ended lately: whose record that it was sent may stand behind that."""
        self._sweep_at = _SWEEP

    def apply(self, record: Record, *, at: float) -> Record | None:
        """Learn from a record; gives that of who has the key then, if anybody."""
        name = (record.task, record.key)
        holder = self._holders.get(name)
        match record.kind:
            case "claim":
                if holder is None or holder.until <= at:
                    self._released.pop(record.id, None)
                    holder = _Holder(record, at + CLAIM_FOR)
            case "sent":
                # Whoever sends has the key; the present one may be wrong if this reader began behind the true claim.
                if record.id not in self._released:
                    holder = _Holder(record, at + record.seconds)
            case "released":
                self._released[record.id] = at
                if holder is not None and holder.record.id == record.id:
                    holder = None
            case _:
                assert_never(record.kind)
        if holder is None:
            self._holders.pop(name, None)
        else:
            self._holders[name] = holder
        self._sweep(at)
        return None if holder is None else holder.record

    def _sweep(self, now: float) -> None:
        if len(self._holders) + len(self._released) >= self._sweep_at:
            self._holders = {name: holder for name, holder in self._holders.items() if holder.until > now}
            self._released = {id_: at for id_, at in self._released.items() if at > now - 2 * CLAIM_FOR}
            self._sweep_at = max(_SWEEP, 2 * (len(self._holders) + len(self._released)))


class UniqueKeys:
    """The keys of an app's calls, as all its processes know them.

    Args:
        longest: gives the longest ``unique_for`` of the app's tasks, in seconds.
    """

    def __init__(self, broker: Broker, topic: str, *, longest: Callable[[], float], clock: Clock) -> None:
        self._longest = longest
        self._log = TopicLog(broker, topic, window=self._window, learn=self._learn, clock=clock)
        self._holders = Holders()
        self._asked: dict[str, Record | None] = {}
        """Claims of this process, and who had the key when they came; None until they were read back."""

    def claim(self, claim: Record) -> Record:
        """Claim a key for a call that is about to be sent; gives the claim that has it.

        If that is this one, its call has to be sent at once, together with what `sent` gives. It takes a round trip to
        write, and one to read what was written.

        Raises:
            BrokerError: the broker did not take the claim, or did not say in time who has the key.
        """
        name, began = f"{claim.task}[{claim.id}]", time.monotonic()
        self._asked[claim.claim] = None
        try:
            self._log.append(self._publication(claim))
            self._log.catch_up()
            holder = self._asked[claim.claim]
        finally:
            del self._asked[claim.claim]
        if holder is None:
            raise BrokerError(f"the claim of {name} was confirmed, but cannot be read on {self._log.topic}")
        if time.monotonic() - began > CLAIM_FOR / 2:  # the call has to be there before the claim is over
            raise PublishTimeoutError(f"{name} was not sent: it took too long to learn who has its key")
        return holder

    def sent(self, claim: Record) -> Publication:
        """What says that the call of a claim is on its way."""
        return self._publication(Record("sent", claim.task, claim.key, claim.id, claim.seconds, claim.claim))

    def release(self, task: str, key: str, task_id: str) -> None:
        """The call has ended; confirmed when this returns. Harmless if another has the key by now."""
        self._log.append(self._publication(Record("released", task, key, task_id)))

    def trim(self) -> None:
        """Let go of what does not count any more."""
        self._log.trim(self._window())

    def close(self) -> None:
        self._log.close()

    def _window(self) -> float:
        return self._longest() + 2 * CLAIM_FOR

    def _publication(self, record: Record) -> Publication:
        return Publication(self._log.topic, msgspec.json.encode(record), key=record.key)

    def _learn(self, delivery: Delivery) -> None:
        try:
            record = _decode(delivery.value)
        except UNREADABLE as error:
            _log.warning("notice.unreadable", topic=delivery.topic, error=str(error))
            return
        holder = self._holders.apply(record, at=delivery.published_at)
        if record.kind == "claim" and record.claim in self._asked:
            self._asked[record.claim] = holder
