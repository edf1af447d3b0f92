"""When entries of a schedule are due: crontabs through changes of the clocks, intervals, and what was missed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pulsartasks.errors import ConfigurationError
from pulsartasks.message import TASK_ID, TICK, Publication, task_id_instant
from pulsartasks.schedule import LATE, Entry, Missed, Schedule, crontab, define, due, every, to_milliseconds

UTC = timezone.utc
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


class Call:
    """Something that can be sent."""

    def publication(self) -> Publication:
        return Publication("persistent://public/default/shop.purge", b"{}", properties={TASK_ID: "fresh", "a": "b"})


def loose(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A call that the type checker would refuse."""
    return function(*args, **kwargs)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def following(schedule: Schedule, after: str, count: int) -> list[str]:
    """The next instants in UTC, each asked for anew."""
    found, instant = [], at(after)
    for _ in range(count):
        instant = schedule.next(instant)
        found.append(f"{instant:%m-%d %H:%M}")
    return found


# In 2026 clocks go forward on 29 March at 01:00 UTC in Berlin and on 8 March at 07:00 UTC in New York, and back on
# 25 October at 01:00 UTC and on 1 November at 06:00 UTC.
@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # does not exist: at the first instant after the gap, once
        ("30 2 * * *", BERLIN, "2026-03-28", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("30 2 * * *", NEW_YORK, "2026-03-07", ["03-07 07:30", "03-08 07:00", "03-09 06:30"]),
        ("0,20,40 2 * * *", BERLIN, "2026-03-29", ["03-29 01:00", "03-30 00:00"]),
        ("0 2,3 * * *", BERLIN, "2026-03-29", ["03-29 01:00", "03-30 00:00", "03-30 01:00"]),
        ("0 3 * * *", BERLIN, "2026-03-28", ["03-28 02:00", "03-29 01:00", "03-30 01:00"]),
        # exists twice: the first time, once
        ("30 2 * * *", BERLIN, "2026-10-24", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31", ["10-31 05:30", "11-01 05:30", "11-02 06:30"]),
        ("0 3 * * *", BERLIN, "2026-10-24", ["10-24 01:00", "10-25 02:00", "10-26 02:00"]),
        # every hour: as often as the clocks show it
        ("0 * * * *", BERLIN, "2026-03-28T23:30", ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        ("0 * * * *", BERLIN, "2026-10-24T23:30", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        ("*/30 1 * * *", NEW_YORK, "2026-11-01", ["11-01 05:00", "11-01 05:30", "11-01 06:00", "11-01 06:30"]),
        ("*/30 2 * * *", NEW_YORK, "2026-03-08", ["03-09 06:00", "03-09 06:30"]),
        # ends of months, and the day that comes every four years
        ("0 0 31 * *", "UTC", "2026-01-31", ["03-31 00:00", "05-31 00:00", "07-31 00:00"]),
        ("0 0 L * *", "UTC", "2026-02-01", ["02-28 00:00", "03-31 00:00", "04-30 00:00"]),
        ("0 9 * * mon#1", "UTC", "2026-06-01T09:00", ["07-06 09:00", "08-03 09:00"]),
        ("0 0 1 * mon", "UTC", "2026-06-01", ["06-08 00:00", "06-15 00:00", "06-22 00:00", "06-29 00:00"]),
    ],
)  # fmt: skip
def test_a_crontab_is_due_by_the_clocks_of_its_zone(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    assert following(crontab(expression, tz=zone), after, len(expected)) == expected


def test_the_leap_day_is_years_away() -> None:
    leap_day = crontab("0 0 29 2 *")

    assert leap_day.next(at("2026-01-01")) == at("2028-02-29")
    assert leap_day.next(at("2096-03-01")) == at("2104-02-29")


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, "America/Santiago", "UTC"])
@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "0 0 * * *", "0 * * * *", "*/7 * * * *", "5 1-3 * * *", "15 */2 * * sun"]
)
def test_next_is_after_from_wherever_one_asks(expression: str, zone: str) -> None:
    schedule = crontab(expression, tz=zone)
    for month, day in ((3, 8), (3, 29), (4, 5), (9, 6), (10, 4), (10, 25), (11, 1)):
        asked = datetime(2026, month, day, tzinfo=ZoneInfo(zone)).astimezone(UTC) - timedelta(hours=1)
        instants = [schedule.next(asked + timedelta(minutes=7, seconds=1) * step) for step in range(45)]

        for step, instant in enumerate(instants):
            assert instant > asked + timedelta(minutes=7, seconds=1) * step
        assert instants == sorted(instants)


def test_celerys_names_and_lists() -> None:
    assert crontab(minute=0, hour=3) == crontab("0 3 * * *")
    assert crontab(minute="*/15", hour=range(8, 11), day_of_week="mon, fri") == crontab("*/15 8,9,10 * * mon,fri")
    assert crontab(minute=5, hour="7-9", day_of_month="1", month_of_year="jan", tz=BERLIN) == crontab(
        "5 7-9 1 jan *", tz=ZoneInfo(BERLIN)
    )


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: crontab("61 * * * *"), "its minute is none"),
        (lambda: crontab("0 3 * * someday"), "its day-of-week is none"),
        (lambda: crontab("0 0 30 2 *"), "its day-of-month is none"),
        (lambda: crontab("* * */20 * 1L"), "is never due"),
        (lambda: crontab("0 3 * *"), "must have five parts"),
        (lambda: crontab("0 0 3 * * *"), "must have five parts"),
        (crontab, r"crontab\(\): write crontab\('0 3 \* \* \*'\)"),
        (lambda: loose(crontab, 0), r"crontab\(0\): write"),
        (lambda: crontab("0 3 * * *", minute=1), "not both"),
        (lambda: loose(crontab, minutes=1), "did you mean 'minute'"),
        (lambda: crontab(minute=0, hour=0, day_of_month="1-7", day_of_week="mon"), "do both have to fit"),
        (lambda: crontab("0 3 * * *", tz="Europe/Bonn"), "time zone 'Europe/Bonn' is not known"),
        (lambda: crontab("0 3 * * *", tz="../etc"), "is not known"),
        (lambda: every(0), "0.1 s or more"),
        (lambda: every(-5), "0.1 s or more"),
        (lambda: every(float("nan")), "0.1 s or more"),
        (lambda: loose(every, "5"), "seconds or a timedelta"),
        (lambda: loose(define, "nightly", "0 3 * * *", Call(), "skip"), r"write crontab\('0 3 \* \* \*'\)"),
        (lambda: define("nightly", True, Call(), "skip"), "seconds or a timedelta"),
        (lambda: define("a b", 5, Call(), "skip"), "letters, digits"),
        (lambda: loose(define, "nightly", 5, print, "skip"), r"write what it calls as task.s\(...\)"),
        (lambda: loose(define, "nightly", 5, Call(), "later"), "missed must be 'skip' or 'run_once'"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_with_a_reason(make: Any, complaint: str) -> None:
    with pytest.raises((ConfigurationError, TypeError), match=complaint):
        make()


@pytest.mark.parametrize("seconds", [0.1, 1, 7, 86_400, 604_800])
def test_an_interval_is_the_same_whoever_counts_it_and_whenever(seconds: float) -> None:
    schedule = every(seconds)
    first = schedule.next(at("2026-06-01T12:00"))

    assert schedule.next(first) - first == timedelta(seconds=seconds)
    assert schedule.next(first - timedelta(microseconds=1)) == first
    assert (first - at("1970-01-01")) % timedelta(seconds=seconds) == timedelta()


def entry(schedule: Schedule, missed: Missed = "skip") -> Entry:
    return define("tick", schedule, Call(), missed)


NOW = at("2026-06-01T12:00:00")


def test_nothing_is_due_before_its_instant_and_once_from_then_on() -> None:
    hourly = entry(every(3600))

    assert due(hourly, since=NOW - timedelta(hours=1), now=NOW - timedelta(microseconds=1)) == []
    assert due(hourly, since=NOW - timedelta(hours=1), now=NOW) == [NOW]
    assert due(hourly, since=NOW, now=NOW + timedelta(seconds=1)) == []


@pytest.mark.parametrize("missed", ["skip", "run_once"])
def test_all_ticks_of_a_change_of_leaders_are_sent(missed: Missed) -> None:
    found = due(entry(every(10), missed), since=NOW - LATE, now=NOW)

    assert found == [NOW - LATE + timedelta(seconds=10) * number for number in range(1, 13)]


@pytest.mark.parametrize("missed", ["skip", "run_once"])
def test_after_an_outage_of_a_frequent_entry_only_its_last_tick_is_sent(missed: Missed) -> None:
    assert due(entry(every(10), missed), since=NOW - timedelta(days=7), now=NOW) == [NOW]


def test_what_was_missed_is_skipped_or_sent_once() -> None:
    since = NOW - timedelta(days=3)
    nightly = crontab("0 3 * * *")

    assert due(entry(nightly, "skip"), since=since, now=NOW) == []
    assert due(entry(nightly, "run_once"), since=since, now=NOW) == [at("2026-05-30T03:00")]


def test_a_tick_is_the_same_message_whoever_makes_it() -> None:
    instant = to_milliseconds(NOW)

    first, second = (entry(every(5)).tick("shop", instant) for _ in range(2))

    assert first == second
    assert first.properties[TICK] == f"tick@{instant}"
    assert first.properties["a"] == "b"
    assert task_id_instant(first.properties[TASK_ID]) == NOW.timestamp()


def test_ticks_of_other_instants_entries_or_apps_have_other_ids() -> None:
    ticks = [
        entry(every(5)).tick("shop", 1000),
        entry(every(5)).tick("shop", 2000),
        entry(every(5)).tick("other", 1000),
        define("tock", 5, Call(), "skip").tick("shop", 1000),
    ]

    assert len({tick.properties[TASK_ID] for tick in ticks}) == 4


def test_an_interval_may_be_seconds_a_timedelta_or_a_schedule() -> None:
    same = [define("a", when, Call(), "skip").schedule for when in (60, 60.0, timedelta(minutes=1), every(60))]

    assert len(set(same)) == 1
    assert [str(schedule) for schedule in islice(same, 1)] == ["every 0:01:00"]
