"""What the task of every contender does: it notes when it was called and when it ran, at the same cost everywhere.

Only the standard library: this runs in the peers' environment too. Each process writes a file of its own, through
memory: one `pack_into` for each task, about half a microsecond. Whoever measures reads the files while they grow.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import threading
import time
from pathlib import Path

RECORD = struct.Struct("dd")
ROOM = 2_000_000
"""Records that a file can hold; pages that nobody wrote take no memory."""

now = time.monotonic  # one clock for all processes of a machine


class Notes:
    """The file of this process."""

    def __init__(self, folder: Path) -> None:
        with (folder / f"{os.getpid()}.times").open("w+b") as stream:
            stream.truncate(ROOM * RECORD.size)
            self._memory = mmap.mmap(stream.fileno(), 0)
        self._offsets = itertools.count(0, RECORD.size)

    def add(self, called: float) -> None:
        """Writes one record; threads do not share a place."""
        RECORD.pack_into(self._memory, next(self._offsets), called, now())


class Reader:
    """All records of a folder, in memory as far as they were read; `poll` reads on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, mmap.mmap] = {}
        self._read: dict[Path, int] = {}
        self.records: list[tuple[float, float]] = []

    def poll(self) -> int:
        """The number of tasks that have run so far."""
        for path in self._folder.glob("*.times"):
            if path not in self._files and path.stat().st_size == ROOM * RECORD.size:
                with path.open("rb") as stream:
                    self._files[path] = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        for path, memory in self._files.items():
            index = self._read.get(path, 0)
            while (record := RECORD.unpack_from(memory, index * RECORD.size))[1]:
                self.records.append(record)
                index += 1
            self._read[path] = index
        return len(self.records)


_lock = threading.Lock()
_notes: Notes | None = None


def ran(called: float) -> None:
    """To be the whole body of the task; the first call opens the file, after a fork if there is one."""
    (_notes or _open()).add(called)


def setting(name: str, default: str = "") -> str:
    """A setting of this run, e.g. ``url`` of the broker or the ``queue``."""
    return os.environ.get(f"BENCH_{name.upper()}", default)


def _open() -> Notes:
    global _notes  # noqa: PLW0603 - one file for each process, whatever thread comes first
    with _lock:
        if _notes is None:
            _notes = Notes(Path(setting("folder")))
    return _notes
