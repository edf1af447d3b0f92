"""A process that calls tasks and may be killed: ``python -m tests.faults.publisher FIRST END RATE``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from pulsartasks import PulsarTasks
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Publication
from tests.faults import tasks
from tests.faults.entries import Entry, EntryFile, Kind, new_id
from tests.faults.plan import CHORD, PLANS, Plan, chords

AT_ONCE = 10
"""Calls sent together."""
TIMEOUT = 5.0
PAUSE = 0.2


def main(arguments: Sequence[str]) -> None:
    """Call the tasks FIRST to END - 1, so many a second (0: as fast as it goes), each until it is confirmed."""
    first, end, rate = map(int, arguments)
    entries = EntryFile(Path(os.environ[tasks.ENTRIES]))
    plan = PLANS[os.environ[tasks.PLAN]]
    app = tasks.make_app(os.environ[tasks.APP], None, entries, plan)
    began = time.monotonic()
    at_once = CHORD if plan is chords else AT_ONCE
    for start in range(first, end, at_once):
        numbers = range(start, min(start + at_once, end))
        if plan is chords:
            _publish_chord(app, entries, numbers)
        else:
            _publish(app, entries, plan, numbers)
        if rate:
            time.sleep(max(0.0, began + (start + at_once - first) / rate - time.monotonic()))
    app.close()


def _publish_chord(app: PulsarTasks, entries: EntryFile, numbers: Sequence[int]) -> None:
    sending, pid = new_id(), os.getpid()
    entries.write(*(Entry(Kind.SENT, time.time(), n, pid=pid, run=sending) for n in numbers))
    tasks.send_chord(app, numbers[0])
    entries.write(*(Entry(Kind.CONFIRMED, time.time(), n, pid=pid, run=sending) for n in numbers))


def _publish(app: PulsarTasks, entries: EntryFile, plan: Plan, numbers: Sequence[int]) -> None:
    eta = {n: time.time() + plan(n).countdown if plan(n).countdown else 0.0 for n in numbers}
    waiting = {number: _compose(app, plan, number, eta[number]) for number in numbers}
    while waiting:
        sending = new_id()
        now, pid = time.time(), os.getpid()
        entries.write(*(Entry(Kind.SENT, now, n, pid=pid, run=sending, until=eta[n]) for n in waiting))
        try:
            answers = app.publish_many(list(waiting.values()), timeout=TIMEOUT)
        except PulsarTasksError as error:
            answers = [error] * len(waiting)
        confirmed = [n for n, answer in zip(waiting, answers, strict=True) if isinstance(answer, str)]
        now = time.time()
        entries.write(*(Entry(Kind.CONFIRMED, now, n, pid=pid, run=sending) for n in confirmed))
        for number in confirmed:
            del waiting[number]
        if waiting:
            time.sleep(PAUSE)


def _compose(app: PulsarTasks, plan: Plan, number: int, eta: float) -> Publication:
    if plan(number).key is not None:
        return app.tasks["keyed"].s(number).publication()
    shared = app.tasks["shared"]
    if eta:
        shared = shared.using(eta=datetime.fromtimestamp(eta, timezone.utc))
    return shared.s(number).publication()


if __name__ == "__main__":
    main(sys.argv[1:])
