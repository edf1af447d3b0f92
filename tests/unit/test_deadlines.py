"""Whoever waits in a call without an end of its own is told of at its deadline, and nobody else is."""

from __future__ import annotations

import threading
import time

import pytest
from structlog.testing import capture_logs

from pulsartasks.brokers.pulsar import deadlines as module
from pulsartasks.brokers.pulsar.deadlines import Deadlines
from tests.services import wait_until


def test_what_is_still_under_way_at_its_deadline_is_told_of_once() -> None:
    overdue: list[str] = []
    deadlines = Deadlines(overdue.append)

    def wait_for_it(name: str, deadline: float) -> None:
        with deadlines.watch(name, deadline):
            wait_until(lambda: name in overdue, "nobody told of it")

    now = time.monotonic()
    with deadlines.watch("patient", now + 60):
        waiting = [threading.Thread(target=wait_for_it, args=[f"late {n}", now + 0.01 * n]) for n in (3, 1, 2)]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join(60)

    assert sorted(overdue) == ["late 1", "late 2", "late 3"]


def test_what_ended_in_time_is_not_told_of() -> None:
    overdue: list[str] = []
    deadlines = Deadlines(overdue.append)

    with deadlines.watch("quick", time.monotonic() + 0.5):
        pass
    with deadlines.watch("late", time.monotonic() + 0.6):
        wait_until(lambda: bool(overdue), "nobody told of the late one")

    assert overdue == ["late"]


def test_telling_that_fails_is_tried_again_and_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_AGAIN", 0.01)
    tries: list[str] = []

    def tell(name: str) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise RuntimeError("can't start new thread")

    deadlines = Deadlines(tell)

    with capture_logs() as logs, deadlines.watch("first", time.monotonic() + 0.01):
        wait_until(lambda: len(tries) == 3, "it was not tried again")
    with deadlines.watch("second", time.monotonic() + 0.01):
        wait_until(lambda: len(tries) == 4, "nobody told of the next one")

    assert tries == ["first"] * 3 + ["second"]
    assert [entry["event"] for entry in logs] == ["deadline.untold"] * 2


def test_watch_that_finds_no_thread_leaves_nothing_to_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    overdue: list[str] = []
    deadlines = Deadlines(overdue.append)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError), deadlines.watch("refused", time.monotonic()):
            pass
    with deadlines.watch("late", time.monotonic() + 0.01):
        wait_until(lambda: "late" in overdue, "nobody told of the late one")

    assert overdue == ["late"]


def test_thread_ends_when_nothing_is_under_way_and_another_one_comes_when_needed() -> None:
    overdue: list[str] = []
    deadlines = Deadlines(overdue.append)
    before = set(threading.enumerate())

    for name in ("first", "second"):
        with deadlines.watch(name, time.monotonic() + 0.01):
            wait_until(lambda name=name: name in overdue, "nobody told of it")  # type: ignore[misc]
        wait_until(lambda: set(threading.enumerate()) <= before, "the thread did not end")
