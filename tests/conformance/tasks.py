"""The tasks of worker processes: their arguments say what they do, and a file tells what ran.

``pulsartasks worker -A tests.conformance.tasks:app`` finds its app's name and its file in the environment; the test
that started it makes the same app for itself.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pulsartasks import Batch, PulsarTasks, TaskContext
from pulsartasks.errors import TimeLimitExceeded
from pulsartasks.options import Mode
from tests.conformance.records import Record

APP = "CONFORMANCE_APP"
RECORD = "CONFORMANCE_RECORD"

Deed = Literal[
    "succeed",
    "raise",
    "retry",
    "retry later",
    "hang",
    "exit",
    "kill all",
    "eat",
    "spin",
    "hold",
    "acknowledge",
    "leave behind",
]
MODES: tuple[Mode, ...] = ("shared", "exclusive", "failover", "key_shared")


def _eat() -> None:
    eaten = bytearray(600_000_000)
    time.sleep(3600 if eaten else 0)


def _spin() -> None:
    while True:
        pass


NEVER_RETURN: Mapping[str, Callable[[], object]] = {
    "hang": lambda: time.sleep(3600),
    "exit": lambda: os._exit(3),
    "kill all": lambda: os.killpg(0, signal.SIGKILL),
    "eat": _eat,
    "spin": _spin,
    "hold": lambda: re.fullmatch("(a+)+", "a" * 60 + "b"),  # one call into C that keeps the interpreter's lock
}


def make_app(name: str, broker: str | None, record: Record) -> PulsarTasks:
    """An app with a task for each mode, called as the mode, and some for one option each: all do as they are told.

    Those called `batch` are told so by their labels.
    """
    app = PulsarTasks(name, broker)

    def act(context: TaskContext, label: str, deed: Deed = "succeed", seconds: float = 0.0, times: int = 1) -> str:
        with record.attempt(label, context.retries + 1):
            if deed == "acknowledge":
                context.ack()
            time.sleep(seconds)
            if deed == "raise":
                raise ValueError(label)
            if deed == "leave behind":
                subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
            if deed == "retry" and context.retries < times:
                raise ConnectionError(label)
            if deed == "retry later" and context.retries < times:
                context.retry(countdown=3)
            if deed in NEVER_RETURN:
                NEVER_RETURN[deed]()
        return f"{label} by {os.getpid()}"

    def key(label: str, *_: Any, **__: Any) -> str:
        return label.partition("/")[0]

    for mode in MODES:
        app.task(name=mode, bind=True, mode=mode, key=key, autoretry_for=(OSError,), default_retry_delay=0.3)(act)
    app.task(name="early", bind=True, ack="early")(act)
    app.task(name="limited", bind=True, time_limit=1.0, autoretry_for=(TimeLimitExceeded,), max_retries=1)(act)
    app.task(name="manual", bind=True, ack="manual")(act)
    app.task(name="once", bind=True, once=True)(act)
    app.task(name="unique", bind=True, unique_key=lambda label: label)(act)
    _define_batch(app, record)
    return app


def _define_batch(app: PulsarTasks, record: Record) -> None:
    @app.task(batch=Batch(max_messages=8, max_wait=2.0), time_limit=5.0)
    def batch(labels: list[str]) -> None:
        for label in labels:
            with record.attempt(label):
                if label in NEVER_RETURN:
                    NEVER_RETURN[label]()


def __getattr__(name: str) -> PulsarTasks:
    if name != "app":
        raise AttributeError(name)
    return make_app(os.environ[APP], None, Record(Path(os.environ[RECORD])))
