"""What one leader does: it sends the ticks that are due, each of them once, whatever became of the leader before.

Each round writes down what it is going to send, sends it, and writes down that it was sent. What the leader before was
about to send may have been sent or not. Where the broker knows a message that it has already, it is sent again and
stored once; elsewhere its topic is searched for it first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import datetime, timezone
from typing import Literal

import msgspec
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.beat.leadership import WITHIN, Leadership, LeadershipLostError, Seen, Sending
from pulsartasks.errors import TRANSIENT, PulsarTasksError
from pulsartasks.message import TASK_ID, TICK, Publication
from pulsartasks.results.base import text_of
from pulsartasks.schedule import LATE, Entry, due, from_milliseconds, to_milliseconds
from pulsartasks.topics import is_persistent

HOLD = 2 * WITHIN + 1.0
"""Seconds after which nothing that a former leader began to send can arrive any more."""
AGAIN = 5.0
"""Seconds until what could not be sent is tried again."""
CLOCKS = 1.0
"""Seconds by which a message may bear an earlier time than one that was confirmed before it was sent."""

_log = structlog.get_logger("pulsartasks")


class Term:
    """The rounds of one leader."""

    def __init__(self, app: PulsarTasks, leadership: Leadership) -> None:
        self._app = app
        self._leadership = leadership
        self._seen = dict(leadership.record.seen)
        self._sending = {name: each for name, each in leadership.record.sending.items() if name in app.scheduled}
        self._upcoming: dict[str, datetime] = {}
        """The next tick of each entry."""
        self._deduplicated: dict[tuple[str, bool], bool] = {}
        """Of each topic, and what has a key or none, whether the broker drops what it has already."""
        self._begun = dict.fromkeys(self._sending, leadership.written_at)
        """When it was written down that the ticks of `_sending` are going to be sent."""
        self._clear = {name: time.monotonic() + self._hold(name) for name in self._sending}
        """The monotonic instants from which on it can be found out whether they were."""

    def round(self) -> float:
        """Send what is due; gives the seconds until there may be more.

        Raises:
            LeadershipLostError, BrokerError: this copy may not lead any more, and what it was sending is in doubt.
        """
        now = self._now()
        known = dict(self._seen)
        fresh = self._due(now)
        doubtful = {name: self._sending[name] for name, at in self._clear.items() if at <= time.monotonic()}
        if fresh or doubtful:
            self._send({**fresh, **doubtful})
        elif self._seen != known:
            self._leadership.write(self._seen, self._sending)
        return self._until_next()

    def close(self) -> None:
        """Leave the names under which ticks are published to the next leader."""
        for name in self._app.scheduled:
            with suppress(PulsarTasksError):  # the broker is closed, and the names with it
                self._app.broker.retire(self._producer(name))

    def _due(self, now: datetime) -> dict[str, Sending]:
        """The ticks of all entries that are to be sent now."""
        found = {}
        for name, entry in self._app.scheduled.items():
            if name in self._sending or self._upcoming.get(name, now) > now:
                continue
            seen = self._seen.get(name)
            if seen is None or not _continues(seen, entry, now):
                seen = Seen(to_milliseconds(now), str(entry.schedule), None if seen is None else seen.last)
            since = from_milliseconds(seen.until)
            if ticks := due(entry, since=since, now=now):
                found[name] = Sending([to_milliseconds(tick) for tick in ticks], to_milliseconds(now))
            elif entry.schedule.next(since) <= now:
                _log.warning("tick.missed", entry=name, since=since.isoformat())
                seen = msgspec.structs.replace(seen, until=to_milliseconds(now))
            self._seen[name] = seen
            self._upcoming[name] = entry.schedule.next(from_milliseconds(seen.until))
        return found

    def _send(self, work: Mapping[str, Sending]) -> None:
        made = {name: self._ticks(name, sending) for name, sending in work.items()}
        began = time.monotonic()
        self._sending.update(work)
        self._leadership.write(self._seen, self._sending)
        for name in work:
            self._begun.setdefault(name, self._leadership.written_at)
        if time.monotonic() - began > WITHIN:
            raise LeadershipLostError("this process was held up")
        ticks = [tick for each in made.values() for tick in each or ()]
        outcomes = iter(self._app.publish_many(ticks, timeout=WITHIN))
        for name, sending in work.items():
            fates = {_fate(tick, next(outcomes)) for tick in made[name] or ()}
            if "unknown" in fates:
                self._clear[name] = time.monotonic() + AGAIN
            else:
                self._settle(name, sending, sent=made[name] is not None and "refused" not in fates)
        self._leadership.write(self._seen, self._sending)

    def _settle(self, name: str, sending: Sending, *, sent: bool) -> None:
        schedule = self._app.scheduled[name].schedule
        last = sending.ticks[-1] if sent else self._seen[name].last
        self._seen[name] = Seen(sending.until, str(schedule), last)
        self._upcoming[name] = schedule.next(from_milliseconds(sending.until))
        for doubt in (self._sending, self._begun, self._clear):
            doubt.pop(name, None)

    def _ticks(self, name: str, sending: Sending) -> list[Publication] | None:
        """The messages of an entry that are not there yet; None if they cannot be made."""
        entry = self._app.scheduled[name]
        try:
            ticks = [entry.tick(self._app.name, instant) for instant in sending.ticks]
        except Exception:  # noqa: BLE001 - wrong arguments, or the code of whoever wrote key=
            _log.exception("tick.refused", tick=name)
            return None
        topic = ticks[0].topic
        if all(self._is_deduplicated(tick) for tick in ticks):
            producer = self._producer(name)
            return [
                msgspec.structs.replace(tick, producer=producer, sequence=instant)
                for tick, instant in zip(ticks, sending.ticks, strict=True)
            ]
        if name not in self._begun:
            return ticks
        if not is_persistent(topic):
            return []  # where nothing is stored, once at most is what is promised
        arrived = self._arrived(topic, since=self._begun[name])
        return [tick for tick in ticks if tick.properties[TICK] not in arrived]

    def _arrived(self, topic: str, *, since: float) -> set[str]:
        """The ticks that a topic got, by their header."""
        with closing(self._app.broker.read(topic, since=since - CLOCKS)) as reader:
            found = set()
            while (delivery := reader.receive(0.0)) is not None:
                found.add(delivery.properties.get(TICK, ""))
            return found

    def _is_deduplicated(self, tick: Publication) -> bool:
        """Whether the broker drops it if it has it already; its topic exists from then on."""
        topic, keyed = tick.topic, tick.key is not None
        if (topic, keyed) not in self._deduplicated:
            self._app.declare(topic)
            try:
                deduplicated = self._app.broker.deduplicates(topic, keyed=keyed)
            except PulsarTasksError:  # nobody who may say so is there
                deduplicated = False
            self._deduplicated[topic, keyed] = deduplicated
        return self._deduplicated[topic, keyed]

    def _hold(self, name: str) -> float:
        """Seconds until it can be found out what became of an entry's ticks."""
        try:
            tick = self._app.scheduled[name].call.publication()
        except Exception:  # noqa: BLE001 - it cannot be made, as `_ticks` will tell
            return 0.0
        return 0.0 if self._is_deduplicated(tick) else HOLD

    def _producer(self, name: str) -> str:
        return f"{self._app.name}.beat.{name}"

    def _until_next(self) -> float:
        now = self._now()
        ticks = [(at - now).total_seconds() for name, at in self._upcoming.items() if name not in self._sending]
        doubts = [at - time.monotonic() for at in self._clear.values()]
        return max(0.0, min(ticks + doubts, default=math.inf))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._app.clock.now(), timezone.utc)


def _continues(seen: Seen, entry: Entry, now: datetime) -> bool:
    """Whether what was seen says something of the entry: not if it has another schedule now, or the clock went back."""
    return seen.schedule == str(entry.schedule) and from_milliseconds(seen.until) <= now + LATE


def _fate(tick: Publication, outcome: str | PulsarTasksError) -> Literal["sent", "unknown", "refused"]:
    """What became of a tick."""
    name = tick.properties[TICK]
    if not isinstance(outcome, PulsarTasksError):
        _log.info("tick.sent", tick=name, id=tick.properties.get(TASK_ID))
        return "sent"
    if isinstance(outcome, TRANSIENT):
        _log.warning("tick.unconfirmed", tick=name, error=text_of(outcome), again_in=AGAIN)
        return "unknown"
    _log.error("tick.refused", tick=name, error=text_of(outcome))
    return "refused"
