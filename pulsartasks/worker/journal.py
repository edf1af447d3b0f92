"""A process's journal: what runs, waits and has just finished here, in a file that survives the process.

The file is mapped into memory, so that writing costs about a microsecond and needs no system call, and what was written
is there however the process ends. Its owner holds a lock on it, which the system releases with the process.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pulsartasks.crashes import Cause, CrashReport, Trace

_HEADER = struct.Struct("<4sBxxxIII")
"""Magic, whether running messages are excused, and how many slots there are of each kind."""
_MAGIC = b"PTJ1"
_EXCUSED = 4
_ENTRY = struct.Struct("<BBHIdd232s")
"""State, whether alone, length of the id, retries, deadline (monotonic seconds, 0: none), began (likewise), the id."""
_TIMES, _TIMES_AT = struct.Struct("<dd"), 8
"""The two instants in it, and where they are."""
_DONE = struct.Struct("<d160s")
"""What has finished: when (monotonic seconds), and which message, zeros after it."""
_LONGEST_DONE = 159
_FINISHED = 4096
"""Messages that may have finished within the 0.1 s for which Pulsar's client keeps acknowledgements to itself."""
_WAITING = 1024
_UNHEARD = 1.0
"""Seconds before the last thing that a process finished within which others may be unknown to the broker."""
_TRIES = 100
_FREE, _BUSY, _LIMITED = 0, 1, 2
_SUFFIX = ".journal"


class Journal:
    """The journal of this process, with a slot for each of its `threads`."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.process = uuid4().hex
        self.path = folder / f"{self.process}{_SUFFIX}"
        self._layout = _Layout(threads, _WAITING, _FINISHED)
        self._descriptor = _create(self.path, self._layout)
        self._map = mmap.mmap(self._descriptor, self._layout.size)
        self._local = threading.local()
        self._free_runs = itertools.count()
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        self._free_waiting = list(range(_WAITING))
        self._finished = itertools.cycle([self._layout.finished(number) for number in range(_FINISHED)])
        # A forked child would hold the lock as well, and beyond the end of this process.
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(this()))

    def begin(self, id_: str, *, retries: int, alone: bool, time_limit: float | None) -> None:
        """Note that this thread runs a message, with `time_limit` seconds for it (None: any time)."""
        now = time.monotonic()
        self._write(self.slot, id_, alone, retries, 0.0 if time_limit is None else now + time_limit, now)

    def limit(self, slots: Iterable[int], time_limit: float) -> None:
        """Note that what runs in these slots has so many seconds from now, all of it together."""
        now = time.monotonic()
        for offset in slots:
            self._map[offset] = _FREE
            _TIMES.pack_into(self._map, offset + _TIMES_AT, now + time_limit, now)
            self._map[offset] = _BUSY

    @property
    def slot(self) -> int:
        """Where this thread writes what it runs."""
        try:
            return self._local.slot  # type: ignore[no-any-return]
        except AttributeError:
            self._local.slot = self._layout.run(next(self._free_runs))
            return self._local.slot  # type: ignore[no-any-return]

    def end(self) -> None:
        """Note that this thread runs nothing any more."""
        self._map[self.slot] = _FREE

    def postpone(self, id_: str, retries: int) -> None:
        """Note that a message waits in its place after so many failed attempts."""
        with self._lock:
            if id_ not in self._waiting:
                if not self._free_waiting:
                    return  # its attempts would be counted anew after a crash
                self._waiting[id_] = self._free_waiting.pop()
            offset = self._layout.waiting(self._waiting[id_])
            self._write(offset, id_, False, retries, 0.0, 0.0)

    def finish(self, id_: str, delivered: str) -> None:
        """Note that a message is settled, just before the broker is told.

        It waits no more, and what was `delivered` (subscription and message id) is not to run again.
        """
        if id_ in self._waiting:
            with self._lock:
                slot = self._waiting.pop(id_)
                self._map[self._layout.waiting(slot)] = _FREE
                self._free_waiting.append(slot)
        name = delivered.encode()
        if len(name) <= _LONGEST_DONE:
            _DONE.pack_into(self._map, next(self._finished), time.monotonic(), name)

    def excuse(self) -> None:
        """From now on the end of the process is nobody's fault."""
        self._map[_EXCUSED] = 1

    def waiting(self) -> bool:
        return bool(self._waiting)

    def report(self) -> CrashReport:
        """What would be reported if the process were dead now."""
        return _report(self._map, self.process)

    def close(self) -> None:
        """Remove the file: nothing is left to report."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # others are there
            self.path.parent.rmdir()
        self.let_go()

    def let_go(self) -> None:
        """Close the lock; it is free if no other process has it open."""
        self._map.close()  # it has a descriptor of its own for the same lock
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, offset: int, id_: str, alone: bool, retries: int, deadline: float, began: float) -> None:
        name = id_.encode()
        _ENTRY.pack_into(self._map, offset, _FREE, alone, len(name), retries, deadline, began, name)
        self._map[offset] = _BUSY  # last: whoever reads it finds all the rest


class JournalView:
    """Another process's journal while that process lives: for the supervisor, who ends what takes too long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map = _open_map(path)

    def running(self) -> list[str]:
        """What runs there, as subscription and task id."""
        return [trace.id for trace in _report(self._map, "").traces if trace.running]

    def convict(self) -> list[str]:
        """Mark what has exceeded its time limit, for which the process is to be killed now; gives what that is."""
        now = time.monotonic()
        late = []
        for offset in _Layout.of(self._map).runs():
            state, _, length, _, deadline, _, name = _ENTRY.unpack_from(self._map, offset)
            if state == _BUSY and 0 < deadline <= now:
                self._map[offset] = _LIMITED
                late.append(_text(name[:length]))
        return late

    def excuse(self) -> None:
        """The process is killed for no fault of what it runs."""
        self._map[_EXCUSED] = 1


@contextmanager
def dead_journal(path: Path) -> Iterator[CrashReport | None]:
    """What a process left behind; None if it is alive, or somebody else is looking at it.

    The file is removed at the end of the block unless that raises.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()  # who had the lock before may have removed it
    except OSError:
        os.close(descriptor)
        yield None
        return
    try:
        yield _report(path.read_bytes(), path.name.removesuffix(_SUFFIX))
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def journals(folder: Path) -> list[Path]:
    """The journals in `folder`, the living and the dead."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


class _Layout:
    """Where everything is in a journal with so many slots of each kind."""

    def __init__(self, runs: int, waiting: int, finished: int) -> None:
        self.counts = runs, waiting, finished
        self._first_waiting = _HEADER.size + runs * _ENTRY.size
        self._first_finished = self._first_waiting + waiting * _ENTRY.size
        self.size = self._first_finished + finished * _DONE.size

    @classmethod
    def of(cls, content: bytes | mmap.mmap) -> _Layout:
        _, _, runs, waiting, finished = _HEADER.unpack_from(content)
        return cls(runs, waiting, finished)

    def run(self, number: int) -> int:
        return _HEADER.size + number * _ENTRY.size

    def waiting(self, number: int) -> int:
        return self._first_waiting + number * _ENTRY.size

    def finished(self, number: int) -> int:
        return self._first_finished + number * _DONE.size

    def runs(self) -> Iterator[int]:
        return map(self.run, range(self.counts[0]))


def _create(path: Path, layout: _Layout) -> int:
    """The journal's file, locked; nobody sees it unlocked and takes this process for dead."""
    unborn = path.with_suffix(".new")
    descriptor = _open_new(unborn)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Written in full: to touch a hole of a mapped file when the disk is full would kill the process.
        content = bytearray(layout.size)
        _HEADER.pack_into(content, 0, _MAGIC, 0, *layout.counts)
        while content:
            content = content[os.write(descriptor, content) :]
        unborn.rename(path)
    except BaseException:
        unborn.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _open_new(path: Path) -> int:
    """A new file, and its folder before that, which the last one to leave may take along at this very moment."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    raise FileNotFoundError(f"{path.parent} cannot be made")


def _open_map(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _report(content: bytes | mmap.mmap, process: str) -> CrashReport:
    """What the journal says; empty if it is not one of ours."""
    if content[:4] != _MAGIC:
        return CrashReport(process, time.time())
    layout = _Layout.of(content)
    excused = bool(content[_EXCUSED]) or any(content[offset] == _LIMITED for offset in layout.runs())
    traces = [
        *_traces(content, layout.runs(), running=True, otherwise="none" if excused else "crash"),
        *_traces(content, map(layout.waiting, range(layout.counts[1])), running=False, otherwise="none"),
    ]
    return CrashReport(process, time.time(), traces, _finished(content, layout))


def _traces(content: bytes | mmap.mmap, offsets: Iterable[int], *, running: bool, otherwise: Cause) -> Iterator[Trace]:
    """The entries that are in use; `otherwise` is what the death has to do with those that no time limit was for."""
    for offset in offsets:
        state, alone, length, retries, _, _, name = _ENTRY.unpack_from(content, offset)
        if state != _FREE:
            yield Trace(
                _text(name[:length]),
                retries=retries,
                running=running,
                alone=bool(alone),
                cause="time limit" if state == _LIMITED else otherwise,
            )


def _finished(content: bytes | mmap.mmap, layout: _Layout) -> list[str]:
    entries = [_DONE.unpack_from(content, layout.finished(number)) for number in range(layout.counts[2])]
    newest = max((instant for instant, _ in entries), default=0.0)
    return [_text(name.partition(b"\0")[0]) for instant, name in entries if instant and instant > newest - _UNHEARD]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _let_go(journal: Journal | None) -> None:
    if journal is not None:
        journal.let_go()
