"""What ran: tasks of any process append to one file, a line when an attempt begins and one when it ends."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import msgspec

from tests.services import wait_until


class Line(msgspec.Struct, frozen=True):
    run: str
    """The same in the two lines of an attempt."""
    label: str
    at: float
    """Seconds since the epoch."""
    attempt: int
    pid: int
    thread: int
    ended: bool


@dataclass(frozen=True)
class Run:
    """One attempt; `ended` is None while it runs, and for ever if its process was killed."""

    label: str
    attempt: int
    pid: int
    thread: int
    began: float
    ended: float | None

    @property
    def key(self) -> str:
        """What a label like ``key/number`` has before the stroke."""
        return self.label.partition("/")[0]


class Record:
    """The file, for those who write it and those who wait for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def attempt(self, label: str, attempt: int = 1) -> Iterator[None]:
        """Write down an attempt; its end too when it raises."""
        run = uuid4().hex
        self._write(run, label, attempt, ended=False)
        try:
            yield
        finally:
            self._write(run, label, attempt, ended=True)

    def runs(self) -> list[Run]:
        """All attempts in the order in which they began."""
        if not self.path.exists():
            return []
        lines: dict[str, list[Line]] = defaultdict(list)
        for text in self.path.read_bytes().splitlines():
            line = msgspec.json.decode(text, type=Line)
            lines[line.run].append(line)
        runs = [_run(pair) for pair in lines.values()]
        return sorted(runs, key=lambda run: run.began)

    def labels(self) -> list[str]:
        """The labels of all attempts, in the order in which they began."""
        return [run.label for run in self.runs()]

    def finished(self) -> list[str]:
        """The labels of the attempts that ended, in the order in which they began."""
        return [run.label for run in self.runs() if run.ended is not None]

    def wait_for(self, count: int, *, ended: bool = True, timeout: float = 120.0) -> list[Run]:
        """Wait until at least `count` attempts have ended (or begun); gives all."""
        wait_until(
            lambda: len(self.finished() if ended else self.labels()) >= count,
            f"{count} attempts were not seen, only {self.labels()}",
            timeout,
        )
        return self.runs()

    def wait_for_labels(self, *labels: str, ended: bool = True, timeout: float = 120.0) -> list[Run]:
        """Wait until each of `labels` has ended (or begun) at least once; gives all attempts."""
        wanted = set(labels)
        wait_until(
            lambda: wanted <= set(self.finished() if ended else self.labels()),
            f"not all of {sorted(wanted)} were seen",
            timeout,
        )
        return self.runs()

    def _write(self, run: str, label: str, attempt: int, *, ended: bool) -> None:
        line = Line(run, label, time.time(), attempt, os.getpid(), threading.get_ident(), ended)
        # One write to a file opened for appending is whole, whoever else writes.
        with self.path.open("ab", buffering=0) as file:
            file.write(msgspec.json.encode(line) + b"\n")


def overlapping(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Attempts, each with the next to begin, that ran at the same time; what was killed never ended."""
    by_start = sorted(runs, key=lambda run: run.began)
    return [(one, other) for one, other in pairwise(by_start) if one.ended is None or one.ended > other.began]


def _run(lines: list[Line]) -> Run:
    first = lines[0]
    ended = lines[1].at if len(lines) > 1 else None
    return Run(first.label, first.attempt, first.pid, first.thread, first.at, ended)
