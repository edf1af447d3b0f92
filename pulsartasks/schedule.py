"""When something is due: crontabs and intervals, and which ticks are sent after a time without a scheduler.

Pure rules: the present instant comes in as an argument. A *tick* is one instant of an entry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import takewhile
from typing import Any, Literal, Protocol, TypedDict, get_args
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from typing_extensions import Unpack

from pulsartasks.errors import ConfigurationError
from pulsartasks.message import REPLY_TO, TASK_ID, TICK, Publication, tick_id
from pulsartasks.options import check_names
from pulsartasks.topics import is_name

Missed = Literal["skip", "run_once"]

LATE = timedelta(seconds=120)
"""What a change of leaders may take: ticks of this time are all sent, late. What is older was missed."""
SHORTEST = timedelta(seconds=0.1)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Field = int | str | Iterable[int]


class Schedule(ABC):
    """When an entry is due: a `crontab`, an interval (`every`), or a rule of your own that needs no memory.

    ``str()`` of it is shown to people, and tells a rule from the one that it replaces.
    """

    zone: tzinfo = timezone.utc
    """In which its instants are shown."""

    @abstractmethod
    def next(self, after: datetime) -> datetime:
        """The first instant after `after`, a whole millisecond; both know their time zone."""


@dataclass(frozen=True)
class Interval(Schedule):
    """At all multiples of `interval` since the beginning of 1970 (UTC), whoever counts them.

    >>> str(every(90)), every(timedelta(hours=1)).next(datetime(2026, 3, 29, 0, 59, 59, 999, tzinfo=timezone.utc))
    ('every 0:01:30', datetime.datetime(2026, 3, 29, 1, 0, tzinfo=datetime.timezone.utc))
    """

    interval: timedelta

    def next(self, after: datetime) -> datetime:
        return EPOCH + ((after - EPOCH) // self.interval + 1) * self.interval

    def __str__(self) -> str:
        return f"every {self.interval}"


@dataclass(frozen=True)
class Crontab(Schedule):
    """As Debian's cron reads `expression`, by the clocks of `zone`.

    Where they are put forward, what has a fixed hour and minute and falls into the gap is due at the first instant
    after it, once. Where they are put back it is due once, the first time. What has a minute or hour that begins with
    ``*`` is due as often as the clocks show it: not in the gap, and twice in the hour that comes twice.

    >>> berlin = crontab("30 2 * * *", tz="Europe/Berlin")
    >>> print(berlin.next(datetime(2026, 3, 29, tzinfo=timezone.utc)))
    2026-03-29 01:00:00+00:00
    """

    expression: str
    zone: tzinfo

    def next(self, after: datetime) -> datetime:
        for found in CronSim(self.expression, after.astimezone(self.zone)):
            instant = found.astimezone(timezone.utc)
            if instant > after:  # in an hour that comes twice it may be the first one, when that is over
                return instant
        raise ConfigurationError(f"crontab {self.expression!r} is never due")

    def __str__(self) -> str:
        return f"{self.expression} ({self.zone})"


class CrontabFields(TypedDict, total=False):
    """Celery's names for the parts of a crontab; each is ``*`` if left out."""

    minute: Field
    hour: Field
    day_of_month: Field
    month_of_year: Field
    day_of_week: Field


def crontab(expression: str | None = None, /, *, tz: str | tzinfo = "UTC", **fields: Unpack[CrontabFields]) -> Crontab:
    """A schedule by minute, hour, day of month, month and day of week.

    ``crontab("0 3 * * mon-fri", tz="Europe/Berlin")``, or by Celery's names. See `Crontab` for changes of the clocks.

    >>> str(crontab(minute=0, hour=(3, 15), day_of_week="mon-fri"))
    '0 3,15 * * mon-fri (UTC)'

    Raises:
        ConfigurationError: it cannot be understood, is never due, or the time zone is unknown.
    """
    if not isinstance(expression, str) and (expression is not None or not fields):
        raise ConfigurationError(
            f"crontab({'' if expression is None else repr(expression)}): write crontab('0 3 * * *'), or "
            "crontab(minute=0, hour=3)"
        )
    if fields:
        expression = _from_fields(expression, fields)
    assert expression is not None
    if len(expression.split()) != 5:
        raise ConfigurationError(
            f"crontab {expression!r} must have five parts: minute, hour, day of month, month, day of week"
        )
    found = Crontab(" ".join(expression.split()), _zone(tz))
    try:
        found.next(EPOCH)
    except CronSimError as error:
        what = str(error).removeprefix("Bad ")
        raise ConfigurationError(f"crontab {expression!r}: its {what} is none (see `man 5 crontab`)") from error
    return found


def every(interval: float | timedelta) -> Interval:
    """A schedule of every so many seconds, to the millisecond: ``every(3600)``.

    Counted from the beginning of 1970 in UTC, so this one is on the hour.

    Raises:
        ConfigurationError: it is not a time of at least 0.1 s.
    """
    if isinstance(interval, (int, float)) and not isinstance(interval, bool) and math.isfinite(interval):
        interval = timedelta(seconds=interval)
    if not isinstance(interval, timedelta) or interval < SHORTEST:
        raise ConfigurationError(
            f"every({interval!r}): an interval is seconds or a timedelta, {SHORTEST.total_seconds():g} s or more"
        )
    return Interval(timedelta(milliseconds=round(interval / timedelta(milliseconds=1))))


class Publishable(Protocol):
    """What an entry sends: a call (``task.s(...)``) or an event (``topic.s(payload)``)."""

    def publication(self) -> Publication: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a schedule: what is sent, and when."""

    name: str
    schedule: Schedule
    call: Publishable
    missed: Missed = "skip"
    """What becomes of ticks while no scheduler ran: ``skip`` forgets them, ``run_once`` sends one for all of them."""

    def tick(self, app: str, instant: int) -> Publication:
        """The message for `instant` (milliseconds since the epoch), the same whoever makes it."""
        publication = self.call.publication()
        properties = {**publication.properties, TICK: f"{self.name}@{instant}"}
        properties.pop(REPLY_TO, None)  # nobody waits for it
        if TASK_ID in properties:
            properties[TASK_ID] = tick_id(app, self.name, instant)
        return msgspec.structs.replace(publication, properties=properties)


def define(name: str, when: Schedule | float | timedelta, call: Publishable, missed: Missed) -> Entry:
    """The entry that a user wrote.

    Raises:
        ConfigurationError: it has no usable name or schedule, or sends nothing.
    """
    if not is_name(name):
        raise ConfigurationError(f"schedule {name!r}: its name must be of letters, digits and . _ - only")
    if not callable(getattr(call, "publication", None)):
        raise ConfigurationError(f"schedule {name!r}: write what it calls as task.s(...), not {call!r}")
    if missed not in get_args(Missed):
        raise ConfigurationError(f"schedule {name!r}: missed must be 'skip' or 'run_once', not {missed!r}")
    if isinstance(when, str):
        raise ConfigurationError(f"schedule {name!r}: write crontab({when!r})")
    return Entry(name, when if isinstance(when, Schedule) else every(when), call, missed)


def ticks(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """All instants of a schedule after `after`, without end."""
    while True:
        after = schedule.next(after)
        yield after


def due(entry: Entry, *, since: datetime, now: datetime) -> list[datetime]:
    """The ticks that are to be sent at `now` by whoever knows that all up to `since` was done.

    All of them, if the first one is not older than `LATE`. Otherwise nobody was there: the last one that is not so old
    is sent, or else one for all that were missed, if the entry wants that.

    >>> def minutes(number):
    ...     return EPOCH + timedelta(minutes=number)
    >>> hourly = Entry("hourly", every(3600), call=None)
    >>> [str(tick.time()) for tick in due(hourly, since=minutes(30), now=minutes(61))]
    ['01:00:00']
    >>> due(hourly, since=minutes(30), now=minutes(90))
    []
    >>> patient = Entry("patient", every(3600), call=None, missed="run_once")
    >>> [str(tick.time()) for tick in due(patient, since=minutes(30), now=minutes(290))]
    ['01:00:00']
    """
    first = entry.schedule.next(since)
    if first > now:
        return []
    recent = list(takewhile(lambda tick: tick <= now, ticks(entry.schedule, max(since, now - LATE))))
    if first > now - LATE:
        return recent
    return recent[-1:] or ([first] if entry.missed == "run_once" else [])


def to_milliseconds(instant: datetime) -> int:
    """Milliseconds since the epoch.

    >>> to_milliseconds(datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc))
    1000
    """
    return (instant - EPOCH) // timedelta(milliseconds=1)


def from_milliseconds(instant: int) -> datetime:
    return EPOCH + timedelta(milliseconds=instant)


def _from_fields(expression: str | None, fields: CrontabFields) -> str:
    check_names(fields, CrontabFields.__annotations__, what="crontab")
    if expression is not None:
        raise ConfigurationError("crontab: give the expression or its parts by name, not both")
    if not {fields.get("day_of_month", "*"), fields.get("day_of_week", "*")} & {"*"}:
        # Celery wants both to fit, cron one of them: whoever comes from there would get another schedule unawares.
        raise ConfigurationError(
            "crontab: with day_of_month and day_of_week, do both have to fit? Then name the days, e.g. "
            "day_of_week='mon#1' for the first Monday of a month; for either write crontab('0 3 1 * mon')"
        )
    values: Mapping[str, Any] = {**fields}
    return " ".join(_field(values.get(name, "*")) for name in CrontabFields.__annotations__)


def _field(value: Field) -> str:
    if isinstance(value, (int, str)):
        return "".join(str(value).split())
    return ",".join(map(str, value))


def _zone(tz: str | tzinfo) -> tzinfo:
    if isinstance(tz, tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"time zone {tz!r} is not known here; write e.g. 'Europe/Berlin' (a machine without any needs: "
            "pip install tzdata)"
        ) from error
