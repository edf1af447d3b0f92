"""Interrupting a task that runs: from another thread, and never the worker's own code around it.

A function is interrupted by an exception that Python raises in its thread between two steps of its code; what waits in
C (``time.sleep``, a query) first returns from there. A coroutine is cancelled on its loop, at its ``await``.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import threading
import time
import types
from collections.abc import Callable, Container, Coroutine, Generator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import structlog

from pulsartasks.errors import SoftTimeLimitExceeded, Terminate

_ReentrantLock = type(threading.RLock())
"""One that its thread may take twice, and in C: made and taken without a step of Python."""
_SWEEP = 1000
"""Alarms in the heap from which on those of runs that are over are swept out."""

_log = structlog.get_logger("pulsartasks")
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]
_NOTHING = ctypes.py_object()
"""NULL: takes back what has not been raised yet."""


class Running(msgspec.Struct, eq=False):  # a Struct, since one is made for every message
    """One attempt that runs, as something that can be interrupted: at most once by each kind of exception."""

    task: str
    task_id: str
    over: bool = False
    sent: tuple[type[BaseException], ...] = ()

    def interrupt(self, kind: type[BaseException]) -> bool:
        """Raise `kind` inside the task; whether it still ran. Never called by two threads at once."""
        raise NotImplementedError

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function` gives or raises, or what it was interrupted by."""
        raise NotImplementedError


class RunningFunction(Running):
    """A function in the thread that makes this.

    The exception comes at a moment that nobody knows, and must not come when the function has ended: it would hit what
    settles the message. So nothing is sent while `_ended` is held, which the thread takes for good when the function
    has ended; what was sent before that and is not raised yet is then taken back.

    Between the function's end and these two steps it may still be raised. Therefore they are done again in a second
    ``finally``: at most two exceptions are ever sent, the first can only break off the first of them, and after the
    second none can come. Whichever way `call` is left, `_ended` is held and nothing is on its way.
    """

    _ended: Any = msgspec.field(default_factory=_ReentrantLock)
    _thread: int = msgspec.field(default_factory=threading.get_ident)

    def interrupt(self, kind: type[BaseException]) -> bool:
        if not self._ended.acquire(blocking=False):
            return False
        try:
            if kind not in self.sent:
                self.sent += (kind,)
                _raise_in(self._thread, ctypes.py_object(kind))
            return True
        finally:
            self._ended.release()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        end = self._ended.acquire
        try:
            try:
                return function(*args)
            finally:
                end()
        finally:
            end()
            if self.sent:
                _raise_in(self._thread, _NOTHING)


class RunningCoroutine(Running, kw_only=True):
    """A coroutine on `loop`. Its steps and its interrupts happen on the loop's thread, so one after the other."""

    loop: asyncio.AbstractEventLoop
    _task: asyncio.Task[Any] | None = None
    _cause: type[BaseException] | None = None
    """What the cancellation stands for that the coroutine has not got yet."""

    def interrupt(self, kind: type[BaseException]) -> bool:
        if self.over:
            return False
        self.loop.call_soon_threadsafe(self._cancel, kind)
        return True

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)  # it waits for the loop, where `drive` is interrupted

    async def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the task's coroutine, on the loop."""
        if self._cause is not None:  # interrupted before it began
            coroutine.close()
            raise self._cause
        self._task = asyncio.current_task()
        try:
            return await self._steps(coroutine)
        except _SoftCancelled as error:
            raise SoftTimeLimitExceeded().with_traceback(error.__traceback__) from error.__cause__
        finally:
            self.over = True

    def _cancel(self, kind: type[BaseException]) -> None:
        if self.over or kind in self.sent:
            return
        self.sent += (kind,)
        if self._cause is not Terminate:
            self._cause = kind
        if self._task is not None:
            self._task.cancel()

    @types.coroutine
    def _steps(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Step through `coroutine`, to which a cancellation that stands for the soft limit is that."""
        error: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return end.value
            try:
                yield waits_for
                error = None
            except asyncio.CancelledError as cancelled:
                cause, self._cause = self._cause, None
                error = self._soft() if cause is SoftTimeLimitExceeded else cancelled
            except BaseException as other:  # noqa: BLE001 - the outcome of what it waited for is the coroutine's
                error = other

    def _soft(self) -> BaseException:
        uncancel = getattr(self._task, "uncancel", None)  # since Python 3.11
        if uncancel is not None:
            uncancel()  # it may go on, and then must not pass for cancelled
        return _SoftCancelled()


class _SoftCancelled(SoftTimeLimitExceeded, asyncio.CancelledError):
    """The soft limit inside a coroutine: to a task it is that, to asyncio a cancellation after which it tidies up."""


class Interrupts:
    """The attempts that run in this process, and how they are interrupted.

    Args:
        revoked: ids of the tasks that were revoked.
    """

    def __init__(self, revoked: Container[str]) -> None:
        self._revoked = revoked
        self._running: set[Running] = set()  # added to, taken from and copied in one step each, so without a lock
        self._interrupting = threading.Lock()
        self._alarm = Alarm(lambda running: self._interrupt(running, SoftTimeLimitExceeded))

    def run(
        self,
        running: Running,
        limit: float | None,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call `function` so that it can be interrupted, and is after `limit` seconds.

        Raises:
            Terminate: it was terminated, whatever it raised then.
        """
        if limit is not None:
            self._alarm.start()
        try:
            return running.call(self._begin, running, limit, function, args, kwargs)
        except BaseException as error:
            if Terminate in running.sent:
                raise Terminate from error
            raise
        finally:
            running.over = True
            self._running.discard(running)

    def interrupt(self, task_id: str, kind: type[BaseException]) -> None:
        """Raise `kind` in each attempt of the task that runs here."""
        for running in list(self._running):
            if running.task_id == task_id:
                self._interrupt(running, kind)

    def close(self) -> None:
        self._alarm.close()

    def _begin(
        self,
        running: Running,
        limit: float | None,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        # From here on it may be interrupted, between any two steps: so no lock is taken here.
        self._running.add(running)
        # Now that it can be found: a notice that came just before found nothing to interrupt.
        if running.task_id in self._revoked:
            raise Terminate
        if limit is not None:
            self._alarm.set(time.monotonic() + limit, running)
        return function(*args, **kwargs)

    def _interrupt(self, running: Running, kind: type[BaseException]) -> None:
        with self._interrupting:
            interrupted = running.interrupt(kind)
        if interrupted:
            _log.warning("task.interrupted", task=running.task, id=running.task_id, by=kind.__name__)


class Alarm:
    """Rings for runs at their instants, on a thread of its own that the first of them starts."""

    def __init__(self, ring: Callable[[Running], None]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._set: SimpleQueue[tuple[float, Running] | None] = SimpleQueue()
        self._waiting: list[tuple[float, int, Running]] = []
        """Touched by the thread alone."""
        self._ticket = 0
        self._sweep_at = _SWEEP

    def start(self) -> None:
        """Be ready for `set`."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._main, name="pulsartasks-alarm", daemon=True)
                    self._thread.start()

    def set(self, at: float, running: Running) -> None:
        """Ring at the instant `at` (monotonic seconds), unless `running` is over by then."""
        self._set.put((at, running))

    def close(self) -> None:
        self._set.put(None)

    def _main(self) -> None:
        while True:
            try:
                entry = self._set.get(timeout=self._until_due())
            except Empty:
                self._ring(heapq.heappop(self._waiting)[2])
                continue
            if entry is None:
                return
            self._ticket += 1  # a heap must never compare runs
            heapq.heappush(self._waiting, (entry[0], self._ticket, entry[1]))

    def _until_due(self) -> float | None:
        """Seconds until the next alarm; None if there is none."""
        if len(self._waiting) >= self._sweep_at:
            self._waiting = [entry for entry in self._waiting if not entry[2].over]
            heapq.heapify(self._waiting)
            self._sweep_at = max(_SWEEP, 2 * len(self._waiting))
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
