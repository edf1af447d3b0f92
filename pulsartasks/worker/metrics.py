"""Counts and times every attempt, for Prometheus.

prometheus_client's own way to add up processes costs as much as all else that a worker does with an attempt
(docs/decisions/0020-metrics.md). So the counts stand in a file of the process, mapped into memory. The supervisor reads
the files of all its processes, and those that the dead left behind.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from pulsartasks.message import Request
from pulsartasks.middleware.base import Execute, Middleware
from pulsartasks.outcome import Died, Outcome, Replaced, Retried, Revoked, Skipped, Succeeded
from pulsartasks.steps import STARMAP

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder; prometheus_client's, so that a task's own metrics are there as well."""
SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
AGES = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 86_400.0)
_OUTCOMES: Mapping[type[Outcome], str] = {
    Succeeded: "succeeded",
    Retried: "retried",
    Died: "died",
    Revoked: "revoked",
    Skipped: "skipped",
    Replaced: "replaced",
}

# A task's row: how many run, how often each outcome, and for each histogram the sum and then its buckets.
_RUNNING = 0
_OUTCOME = {kind: 1 + number for number, kind in enumerate(_OUTCOMES)}
_SECONDS = 1 + len(_OUTCOMES)
_AGES = _SECONDS + 1 + len(SECONDS) + 1
_COLUMNS = _AGES + 1 + len(AGES) + 1
_ROW = struct.Struct(f"{_COLUMNS}d")

_LENGTH = struct.Struct("<Q")
"""At the beginning of the file: bytes of the JSON list of the tasks' names, filled up with spaces. Then the rows."""
_LIVE, _ENDED = ".attempts", ".ended"


class Metrics(Middleware):
    """Counts in a file of this process.

    Args:
        tasks: the names of all that may run.
        folder: where the files of the worker's processes are.
    """

    def __init__(self, tasks: Iterable[str], folder: Path) -> None:
        names = list(tasks)
        header = msgspec.json.encode(names)
        header += b" " * (-len(header) % _LENGTH.size)
        unborn = folder / f"{os.getpid()}-{uuid4().hex}.new"
        # Written in full: to touch a hole of a mapped file when the disk is full would kill the process.
        unborn.write_bytes(_LENGTH.pack(len(header)) + header + bytes(_ROW.size * len(names)))
        with unborn.open("r+b") as file:
            counts = memoryview(mmap.mmap(file.fileno(), 0))[_LENGTH.size + len(header) :].cast("d")
        unborn.rename(unborn.with_suffix(_LIVE))
        self._rows = {name: counts[n * _COLUMNS : (n + 1) * _COLUMNS] for n, name in enumerate(names)}
        self._lock = threading.Lock()

    def execute(self, request: Request, call_next: Execute) -> Outcome:
        row = self._rows.get(request.task) or self._rows[request.task.removesuffix(STARMAP)]
        age = max(time.time() - request.published_at, 0.0)
        with self._lock:
            row[_RUNNING] += 1
        began = time.perf_counter()
        outcome = None
        try:
            outcome = call_next(request)
            return outcome
        finally:
            seconds = time.perf_counter() - began
            with self._lock:
                row[_RUNNING] -= 1
                _observe(row, _AGES, AGES, age)
                if outcome is not None:
                    row[_OUTCOME[type(outcome)]] += 1
                    if type(outcome) is not Revoked:  # most of these took no time, as they were not begun
                        _observe(row, _SECONDS, SECONDS, seconds)


def process_ended(pid: int, folder: Path) -> None:
    """Nothing runs any more in that process; its counts stay."""
    for path in folder.glob(f"{pid}-*{_LIVE}"):
        path.rename(path.with_suffix(_ENDED))


def collect(folder: Path) -> Iterator[Any]:
    """What the files in `folder` come to, as prometheus_client's registries take it."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    rows = _add_up(folder)
    settled = CounterMetricFamily(
        "pulsartasks_attempts", "Attempts that ended, by outcome.", labels=["task", "outcome"]
    )
    running = GaugeMetricFamily("pulsartasks_attempts_running", "Attempts that run now.", labels=["task"])
    seconds = HistogramMetricFamily("pulsartasks_attempt_duration_seconds", "How long attempts took.", labels=["task"])
    ages = HistogramMetricFamily(
        "pulsartasks_message_age_seconds",
        "How old messages were when they began to run, delays included.",
        labels=["task"],
    )
    for task, row in sorted(rows.items()):
        for kind, outcome in _OUTCOMES.items():
            settled.add_metric([task, outcome], row[_OUTCOME[kind]])
        running.add_metric([task], row[_RUNNING])
        seconds.add_metric([task], *_histogram(row, _SECONDS, SECONDS))
        ages.add_metric([task], *_histogram(row, _AGES, AGES))
    yield from (settled, running, seconds, ages)


def _observe(row: memoryview[float], column: int, buckets: Sequence[float], value: float) -> None:
    row[column] += value
    row[column + 1 + bisect_left(buckets, value)] += 1


def _add_up(folder: Path) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0] * _COLUMNS)
    for path in (*folder.glob(f"*{_ENDED}"), *folder.glob(f"*{_LIVE}")):
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # its process ends at this very moment
            content = path.with_suffix(_ENDED).read_bytes()
        begin = _LENGTH.size + _LENGTH.unpack_from(content)[0]
        names = msgspec.json.decode(content[_LENGTH.size : begin], type=list[str])
        for name, row in zip(names, _ROW.iter_unpack(content[begin:]), strict=True):
            total = rows[name]
            for column, count in enumerate(row):
                if column != _RUNNING or path.suffix == _LIVE:
                    total[column] += count
    return rows


def _histogram(row: Sequence[float], column: int, limits: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' buckets, each of which holds all that is below it, and the sum."""
    counts = itertools.accumulate(row[column + 1 : column + 2 + len(limits)])
    return [*zip((*map(str, limits), "+Inf"), counts, strict=True)], row[column]
