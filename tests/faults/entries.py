"""What happened, in one file that every process of a run appends to: 34 bytes for each thing.

One write to a file opened for appending is whole, whoever else writes and however soon the writer is killed.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

_FORMAT = struct.Struct("<BBIIQdd")


class Kind(IntEnum):
    SENT = 1
    """A publisher began to send the task; `until` is the instant before which it must not run, or 0."""
    CONFIRMED = 2
    """The broker confirmed the sending whose `run` is the same."""
    BEGAN = 3
    """An attempt began; the process may be killed before the next two."""
    DONE = 4
    RAISED = 5
    KILLED = 6
    """The process `pid` was sent SIGKILL at `at` or a moment later."""
    OUTAGE = 7
    """From `at` until `until` the process `pid` (0: every one) and the broker could not be sure of one another; what
    was acknowledged in the last `run` milliseconds before it may have been lost as well."""
    STOPPED = 8
    """The process `pid` was told to finish what it runs and to exit, which a task that waits for its next attempt in
    its place does not hinder: it begins anew elsewhere."""


class Entry(NamedTuple):
    kind: Kind
    at: float
    """Seconds since the epoch."""
    number: int = 0
    """Of the task."""
    attempt: int = 0
    pid: int = 0
    run: int = 0
    """What belongs together: the same in a beginning and its end."""
    until: float = 0.0


class EntryFile:
    """The file, for those who write it and for the one who reads it to its end again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_RDWR, 0o644)
        self._read = 0

    def write(self, *entries: Entry) -> None:
        packed = (_FORMAT.pack(e.kind, e.attempt, e.number, e.pid, e.run, e.at, e.until) for e in entries)
        os.write(self._file, b"".join(packed))

    def new(self) -> list[Entry]:
        """What was written since the last time."""
        size = os.fstat(self._file).st_size
        size -= size % _FORMAT.size  # a write of several is seen growing
        found = os.pread(self._file, size - self._read, self._read)
        self._read = size
        return [
            Entry(Kind(kind), at, number, attempt, pid, run, until)
            for kind, attempt, number, pid, run, at, until in _FORMAT.iter_unpack(found)
        ]

    @contextmanager
    def attempt(self, number: int, attempt: int) -> Iterator[None]:
        """Write down an attempt's beginning, and whether it was done or raised."""
        run, pid = new_id(), os.getpid()
        self.write(Entry(Kind.BEGAN, time.time(), number, attempt, pid, run))
        try:
            yield
        except BaseException:
            self.write(Entry(Kind.RAISED, time.time(), number, attempt, pid, run))
            raise
        self.write(Entry(Kind.DONE, time.time(), number, attempt, pid, run))

    def close(self) -> None:
        os.close(self._file)


def new_id() -> int:
    return int.from_bytes(os.urandom(8), "little")
