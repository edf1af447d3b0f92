"""The app whose workers suffer: ``pulsartasks worker -A tests.faults.tasks:app``."""

from __future__ import annotations

import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from pulsartasks import Failure, PulsarTasks, TaskContext, chord
from pulsartasks.options import TaskOptions
from tests.faults.entries import EntryFile
from tests.faults.plan import PARTS, PLANS, RETRY_DELAY, Plan, chords, fails

APP = "FAULTS_APP"
ENTRIES = "FAULTS_ENTRIES"
PLAN = "FAULTS_PLAN"

MAX_CRASHES = 10
"""Where a task may crash its process only so often: who is killed every second may be unlucky a few times."""


def make_app(name: str, broker: str | None, entries: EntryFile, plan: Plan) -> PulsarTasks:
    """An app with the tasks `shared` and `keyed`, which do what the plan says of their number."""
    app = PulsarTasks(name, broker)
    if plan is chords:
        return _define_chords(app, entries)
    options: dict[str, Any] = {
        "bind": True,
        "autoretry_for": (OSError,),
        "default_retry_delay": RETRY_DELAY,
        "retry_jitter": False,
        "ignore_result": True,
    }
    if "max_crashes" in {field.name for field in fields(TaskOptions)}:
        options["max_crashes"] = MAX_CRASHES

    def act(context: TaskContext, number: int) -> None:
        call = plan(number)
        with entries.attempt(number, context.retries + 1):
            time.sleep(call.seconds)
            if context.retries < call.failures:
                raise ConnectionError(number)

    define: Any = app.task  # what `options` has cannot be checked where it depends on the version
    define(name="shared", **options)(act)
    define(name="keyed", mode="key_shared", key=lambda number: plan(number).key, **options)(act)
    return app


def _define_chords(app: PulsarTasks, entries: EntryFile) -> PulsarTasks:
    """The tasks `part`, `body` and `errback`; the last two fail, and so end as dead letters, if they are told wrong."""

    @app.task(bind=True, max_crashes=MAX_CRASHES, dead_letter=False)
    def part(context: TaskContext, number: int) -> int:
        with entries.attempt(number, context.retries + 1):
            time.sleep(chords(number).seconds)
        if fails(number):
            raise ArithmeticError(number)
        return number

    @app.task(bind=True, max_crashes=MAX_CRASHES)
    def body(context: TaskContext, numbers: list[int], number: int) -> None:
        with entries.attempt(number, context.retries + 1):
            time.sleep(chords(number).seconds)
            if numbers != list(range(number - PARTS, number)):
                raise ValueError(numbers)

    @app.task(bind=True, max_crashes=MAX_CRASHES)
    def errback(context: TaskContext, failure: Failure, number: int) -> None:
        with entries.attempt(number, context.retries + 1):
            if (failure.task, failure.type, fails(*failure.arguments)) != ("part", "builtins:ArithmeticError", True):
                raise ValueError(failure)

    return app


def send_chord(app: PulsarTasks, first: int) -> None:
    """Send the chord whose first part has this number."""
    part, body, errback = (app.tasks[name] for name in ("part", "body", "errback"))
    last = first + PARTS
    chord((part.s(number) for number in range(first, last)), body.s(last).on_error(errback.s(last))).delay()


def from_environment() -> PulsarTasks:
    """The app as the run that started this process has it."""
    return make_app(os.environ[APP], None, EntryFile(Path(os.environ[ENTRIES])), PLANS[os.environ[PLAN]])


def __getattr__(name: str) -> PulsarTasks:
    if name != "app":
        raise AttributeError(name)
    return from_environment()
