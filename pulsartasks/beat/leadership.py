"""Which of several copies of beat sends the ticks, and what it knows of those before it.

Both are one subscription in exclusive mode on ``<app>.beat-log``. Whoever has it leads. What it sent is written there,
and only its newest record is left unacknowledged, so that whoever leads next is given that one. A record counts when
its writer has received it back: then it led at that moment, and no other had been elected.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Consumer, Delivery, Subscription
from pulsartasks.catalog import BEAT_LOG
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Publication
from pulsartasks.results.base import text_of
from pulsartasks.serializers import UNREADABLE
from pulsartasks.topics import LEADER

WITHIN = 5.0
"""Seconds that the leader has to write a record and receive it back; then as many to send what it says."""
CATCH_UP = 30.0
"""Seconds that a new leader has to read what there is."""

_log = structlog.get_logger("pulsartasks")


class LeadershipLostError(PulsarTasksError):
    """Another copy of beat leads now, or may do so."""


class Seen(msgspec.Struct, frozen=True):
    """What was done for one entry; instants are milliseconds since the epoch."""

    until: int
    """All ticks up to here were sent, or were not to be."""
    schedule: str
    """As it was then, in words."""
    last: int | None = None
    """The last tick that was sent."""


class Sending(msgspec.Struct, frozen=True):
    """Ticks of one entry that may have been sent, or not."""

    ticks: list[int]
    until: int
    """What `Seen.until` is when they were."""


class Record(msgspec.Struct, frozen=True):
    """All that a leader knows, as it is written down before ticks are sent and after it."""

    leader: str = ""
    number: int = 0
    epoch: int = 0
    """How many leaders there were; 0 in the mark by which a new one knows that it has read everything."""
    seen: Mapping[str, Seen] = {}
    sending: Mapping[str, Sending] = {}


@dataclass
class Newest:
    """The record that counts among those read so far."""

    record: Record = field(default_factory=Record)
    delivery: Delivery | None = None

    def take(self, record: Record, delivery: Delivery) -> None:
        """Read one more. What a former leader wrote too late has an older epoch, or came second in its own."""
        mine = self.record
        if record.epoch > mine.epoch or (record.epoch == mine.epoch and record.leader == mine.leader):
            self.record, self.delivery = record, delivery


class Leadership:
    """The right to send ticks, from `take` until `close` or the first `LeadershipLostError`."""

    def __init__(self, app: PulsarTasks, consumer: Consumer) -> None:
        self._app = app
        self._topic = log_topic(app)
        self._consumer = consumer
        self._leader = uuid4().hex
        self._number = 0
        self._newest = Newest()

    @classmethod
    def take(cls, app: PulsarTasks) -> Leadership:
        """Lead, knowing what the leaders before did.

        Raises:
            SubscriptionBusyError: another copy leads.
            LeadershipLostError: another one was quicker.
        """
        topic = log_topic(app)
        app.declare(topic)
        leadership = cls(app, app.broker.subscribe(Subscription((topic,), LEADER, mode="exclusive")))
        try:
            leadership._catch_up()
        except BaseException:
            leadership.close()
            raise
        return leadership

    @property
    def record(self) -> Record:
        """The newest record, by this leader or the one before."""
        return self._newest.record

    @property
    def written_at(self) -> float:
        """When that was written, in seconds since the epoch by its writer's clock, or the broker's."""
        delivery = self._newest.delivery
        return 0.0 if delivery is None else delivery.published_at

    def write(self, seen: Mapping[str, Seen], sending: Mapping[str, Sending]) -> None:
        """Put down what was done and what is about to be; when this returns, this copy led until a moment ago.

        Raises:
            LeadershipLostError: that is not sure.
        """
        known, old = self.record, self._newest.delivery
        epoch = known.epoch if known.leader == self._leader else known.epoch + 1
        self._number += 1
        record = Record(self._leader, self._number, epoch, seen, sending)
        for delivery in self._write(record, within=WITHIN):
            self._pass_over(delivery)
        if old is not None:
            old.acknowledge()

    def watch(self, timeout: float) -> None:
        """Let up to `timeout` seconds pass.

        Raises:
            LeadershipLostError: another copy leads, or the broker is away, so that one may.
        """
        delivery = self._consumer.receive(timeout)
        if delivery is not None:
            self._pass_over(delivery)
        elif not self._consumer.connected:
            raise LeadershipLostError("the connection to the broker was lost")

    def close(self) -> None:
        """Let another copy lead."""
        self._consumer.close()

    def _catch_up(self) -> None:
        """Read all records, up to a mark of one's own behind them."""
        read: list[Delivery] = []
        for delivery in self._write(Record(self._leader), within=CATCH_UP):
            read.append(delivery)
            if (record := _decoded(delivery)) is not None:
                self._newest.take(record, delivery)
        for delivery in read:
            if delivery is not self._newest.delivery:
                delivery.acknowledge()

    def _write(self, record: Record, *, within: float) -> Iterator[Delivery]:
        """Publish a record and receive it; gives what comes before it."""
        deadline = time.monotonic() + within
        self._app.broker.publish(Publication(self._topic, msgspec.json.encode(record)), timeout=within)
        while (delivery := self._consumer.receive(max(0.0, deadline - time.monotonic()))) is not None:
            if _decoded(delivery) != record:
                yield delivery
                continue
            if record.epoch:
                self._newest.take(record, delivery)
            else:
                delivery.acknowledge()
            return
        raise LeadershipLostError(f"what was written did not come back within {within:g} s")

    def _pass_over(self, delivery: Delivery) -> None:
        """Go on if the record of somebody else is that of a former leader, who was late and sent nothing by it."""
        record = _decoded(delivery)
        if record is not None and not 0 < record.epoch <= self.record.epoch:
            raise LeadershipLostError("another copy leads")
        delivery.acknowledge()


def log_topic(app: PulsarTasks) -> str:
    """Where the leaders write."""
    return app.own_topic(BEAT_LOG)


def read_newest(app: PulsarTasks) -> Record:
    """What the leader knew a moment ago; an empty record if there never was one."""
    app.declare(log_topic(app))
    newest = Newest()
    with closing(app.broker.read(log_topic(app), since=0.0)) as reader:
        while (delivery := reader.receive(0.0)) is not None:
            if (record := _decoded(delivery)) is not None:
                newest.take(record, delivery)
    return newest.record


def _decoded(delivery: Delivery) -> Record | None:
    """The record; None if it is none, since anybody may have written it."""
    try:
        return msgspec.json.decode(delivery.value, type=Record)
    except UNREADABLE as error:
        _log.warning("beat.unreadable", error=text_of(error))
        return None
