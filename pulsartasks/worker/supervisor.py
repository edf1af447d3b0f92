"""The worker's first process: starts the children, replaces those that die, and stops them on a signal.

It never touches the broker, so nothing that a task does can hang it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from pulsartasks.retry import backoff
from pulsartasks.worker.child import CANNOT_START, ChildOptions, Report
from pulsartasks.worker.journal import JournalView
from pulsartasks.worker.metrics import METRICS_FOLDER, process_ended

STABLE_AFTER = 30.0
"""Seconds after which a child counts as having started well, so its next death is replaced at once."""
LOOK_EVERY = 1.0
"""Seconds between two looks at what exceeds a limit."""
SAME_SIGNAL = 0.5
"""Seconds within which two signals are one."""
LAST_GRACE = 5.0
"""Seconds beyond the grace that a child has to close its connections."""
ARENAS = "2"
"""Heaps of glibc in a child. Of its own it has eight for each core, over which threads spread that take turns anyway:
over a million tasks a child grew by 8 MB so, and by 1.5 MB with two, at the same pace."""

PROCESS_ONE = 1
"""What a container is started with, which the system gives every process whose parent has ended."""

_log = structlog.get_logger("pulsartasks")
_decode_report = msgspec.json.Decoder(Report).decode


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What ``pulsartasks worker`` was told."""

    app: str
    concurrency: int = 1
    processes: int = 1
    topics: Sequence[str] | None = None
    log_level: str = "info"
    grace: float = 30.0
    """Seconds that running tasks have to finish after SIGTERM."""
    max_memory: int | None = None
    """Bytes of memory (resident) above which a child is killed; None: no limit."""


@dataclass(slots=True)
class _Child:
    """A place for one process, and the process in it."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    reports: int = -1
    started: float = 0.0
    deaths: int = 0
    """In a row, without a stable run between."""
    restart_at: float = 0.0
    ready: bool = False
    was_ready: bool = False
    unread: bytes = field(default=b"", repr=False)
    journal: JournalView | None = None


class Supervisor:
    """Runs the children until a signal; `run` gives the exit status."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._children = [_Child(number) for number in range(options.processes)]
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._signalled = 0.0
        self._signal_name = ""
        self._status = 0

    @property
    def alive(self) -> bool:
        """Whether at least one child runs."""
        return any(child.process is not None for child in self._children)

    @property
    def ready(self) -> bool:
        """Whether every child consumes all its subscriptions, or stands by for them."""
        return all(child.ready for child in self._children)

    def run(self) -> int:
        """Keep the children running until SIGTERM or SIGINT; a second one stops now, unfinished work goes elsewhere."""
        with self._caught_signals():
            while not self._signals:
                self._start_due()
                self._wait(min(self._next_start(), time.monotonic() + LOOK_EVERY))
                self._enforce_limits()
                self._bury()
            self._stop()
        return self._status

    # Children

    def _start_due(self) -> None:
        for child in self._children:
            if child.process is None and child.restart_at <= time.monotonic():
                self._start(child)

    def _start(self, child: _Child) -> None:
        reading, writing = os.pipe()
        options = ChildOptions(
            app=self._options.app,
            concurrency=self._options.concurrency,
            processes=self._options.processes,
            topics=None if self._options.topics is None else list(self._options.topics),
            log_level=self._options.log_level,
            grace=self._options.grace,
            report_to=writing,
        )
        child.process = subprocess.Popen(
            [sys.executable, "-m", "pulsartasks.worker.child", msgspec.json.encode(options).decode()],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env={"MALLOC_ARENA_MAX": ARENAS, **os.environ},
        )
        os.close(writing)
        os.set_blocking(reading, False)
        child.reports, child.started, child.ready, child.unread = reading, time.monotonic(), False, b""
        self._selector.register(reading, selectors.EVENT_READ, child)
        _log.info("process.started", number=child.number, pid=child.process.pid)

    def _enforce_limits(self) -> None:
        """Kill what runs too long or has grown too big; its journal says whose fault that is."""
        for child in self._children:
            if child.process is None or child.journal is None:
                continue
            if late := child.journal.convict():
                self._kill(child.process, child, reason="time limit", running=late)
            elif self._options.max_memory and _memory(child.process.pid) > self._options.max_memory:
                self._kill(child.process, child, reason="memory", running=child.journal.running())

    def _kill(self, process: subprocess.Popen[bytes], child: _Child, *, reason: str, running: Sequence[str]) -> None:
        _log.error("process.killed", number=child.number, pid=process.pid, reason=reason, running=running)
        process.kill()
        process.wait()

    def _bury(self) -> None:
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._remove(child, child.process)
        if os.getpid() == PROCESS_ONE:
            self._bury_orphans()

    def _bury_orphans(self) -> None:
        """Take off the process table what tasks had started and left behind: in a container that is for process 1."""
        ours = {child.process.pid for child in self._children if child.process is not None}
        while (pid := _dead_child()) is not None and pid not in ours:
            os.waitpid(pid, 0)

    def _remove(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        status = process.returncode
        self._selector.unregister(child.reports)
        os.close(child.reports)
        if process.stdin is not None:
            process.stdin.close()
        child.process, child.ready, child.journal = None, False, None
        _forget_metrics(process.pid)
        if self._signals:
            return
        if status == CANNOT_START and not child.was_ready:
            self._status, self._signals = CANNOT_START, 1
            return
        stable = time.monotonic() - child.started > STABLE_AFTER
        delay = 0.0 if stable else backoff(child.deaths, factor=0.25, maximum=30.0)
        child.deaths = 0 if stable else child.deaths + 1
        child.restart_at = time.monotonic() + delay
        _log.error("process.died", number=child.number, pid=process.pid, status=status, restart_in=delay)

    def _stop(self) -> None:
        if not self._status:
            _log.info("worker.stopping", grace=self._options.grace)
        for child in self._children:
            if child.process is not None and child.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    child.process.stdin.write(self._signal_name.encode())
                    child.process.stdin.close()
        deadline = time.monotonic() + self._options.grace + LAST_GRACE
        while self.alive and self._signals < 2 and time.monotonic() < deadline:
            self._wait(deadline)
            self._bury()
        for child in self._children:
            if child.process is not None:
                if child.journal is not None:
                    child.journal.excuse()
                self._kill(child.process, child, reason="stop", running=[])
                self._remove(child, child.process)
        if not self._status:
            _log.info("worker.stopped")

    # Waiting

    def _next_start(self) -> float:
        return min([c.restart_at for c in self._children if c.process is None], default=float("inf"))

    def _wait(self, until: float) -> None:
        """Sleep until something happens: a report, a death, a signal, or the instant `until`."""
        timeout = None if until == float("inf") else max(0.0, until - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, _Child):
                self._read(key.data)
            else:
                with contextlib.suppress(BlockingIOError):
                    key.data.recv(4096)

    def _read(self, child: _Child) -> None:
        received = os.read(child.reports, 65_536)
        if not received and child.process is not None:
            # The pipe ends a moment before the process does, which is then a matter of microseconds.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(1.0)
            return
        *lines, child.unread = (child.unread + received).split(b"\n")
        for line in lines:
            report = _decode_report(line)
            ready = report.ready
            if report.journal is not None:
                child.journal = _view(report.journal)
            if ready and not child.was_ready:
                _log.info("process.ready", number=child.number)
            child.ready = ready
            child.was_ready = child.was_ready or ready

    @contextmanager
    def _caught_signals(self) -> Iterator[None]:
        """Count SIGTERM and SIGINT; each also ends a `select` that waits, by a byte in a socket."""
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
        self._selector.register(reading, selectors.EVENT_READ, reading)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # A handler that does nothing is what makes a death end `select`: a child's pipe may have been inherited by a
        # process that a task has forked, and then does not end with the child.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writing.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # the process ends now by itself, with its own status
            self._selector.close()
            reading.close()
            writing.close()

    def _on_signal(self, number: int, _: object) -> None:
        # One stop may come twice at once, to the process and to its group (GNU timeout does that): only a later one is
        # somebody's impatience.
        if time.monotonic() - self._signalled > SAME_SIGNAL:
            self._signalled = time.monotonic()
            self._signal_name = self._signal_name or signal.Signals(number).name
            self._signals += 1


def _view(journal: str) -> JournalView | None:
    try:
        return JournalView(Path(journal))
    except OSError:  # it has ended meanwhile
        return None


def _dead_child() -> int | None:
    """A child of this process that has ended; it is left as it is, since how it ended is told only once."""
    try:
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # it has none
        return None
    return None if dead is None else dead.si_pid


def _memory(pid: int) -> int:
    """Bytes of memory that the process has for itself; 0 where the system does not tell (it is Linux's /proc)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _forget_metrics(pid: int) -> None:
    """Drop the dead process's gauges; its counts stay."""
    if folder := os.environ.get(METRICS_FOLDER):
        process_ended(pid, Path(folder))
        with contextlib.suppress(ImportError):
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(pid)  # type: ignore[no-untyped-call]
