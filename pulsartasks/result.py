"""The handle of a call: wait for its result, from any thread."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pulsartasks.errors import (
    IncompleteStream,
    InvalidArgumentsError,
    PulsarTasksError,
    ResultTimeoutError,
    UnreadableMessageError,
)
from pulsartasks.graph import DependencyGraph
from pulsartasks.publishing import Block
from pulsartasks.results.base import LOOK_AGAIN, Extended, Progress, Result, ResultStore, newer
from pulsartasks.serializers import PayloadCodec

R_co = TypeVar("R_co", covariant=True)


class Home(Protocol):
    """An app, which has a store in each process."""

    @property
    def results(self) -> ResultStore: ...

    def revoke(self, task_id: str, *, terminate: bool = False, eta: datetime | None = None) -> None:
        """See `PulsarTasks.revoke`."""
        ...


class NextAttempt(NamedTuple):
    """What comes of an attempt that failed."""

    due: datetime
    """When the next one begins at the earliest."""
    error: BaseException
    """Why the last one failed, as `AsyncResult.get` would raise it."""


class AsyncResult(Generic[R_co]):
    """One call that was sent, known by its id."""

    def __init__(
        self,
        task_id: str,
        app: Home,
        codec: PayloadCodec[R_co],
        *,
        task: str,
        kept: bool,
        sent_here: bool = True,
    ) -> None:
        self.id = task_id
        self.task = self.name = task
        self._app = app
        self._store = app.results if kept else None
        self._pid = os.getpid()
        self._codec = codec
        self.due: float | None = None
        """When it is to run, in seconds since the epoch; None: at once, or that is not known here."""
        self._sent_here = sent_here
        self._result: Result | None = None
        self._newest: Result | None = None
        """How far it is known to be, while it has not ended."""
        self._looked_at: float | None = None
        """When what is kept was looked at, in monotonic seconds."""
        self._forgotten = False
        self.block: Block | None = None
        """Of what it leaves with, if it was called in a block of ``app.publishing()``."""
        self.parent: AsyncResult[Any] | GroupResult[Any] | None = None
        """Of the call before it in its canvas; known to whoever sent that."""
        self.doubt = ""
        """The option because of which nobody may ever answer, if any."""

    @cached_property
    def children(self) -> list[AsyncResult[Any] | GroupResult[Any]]:
        """Of what is called with its result; known to whoever sent that."""
        return []

    def get(
        self,
        timeout: float | None = None,
        *,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        propagate: bool = True,
    ) -> R_co:
        """The task's return value, as soon as the worker pushes it; nothing is polled.

        Args:
            timeout: seconds to wait; None waits without end, which a task does not allow that has ``durable=False`` or
                keeps no result but that of a failure.
            on_message: is called meanwhile with each state of the call (of those before this process listened, which it
                does from its first `get` on, with the newest), and at last with its end, as a dict with
                ``task_id``, ``status``, ``result`` (see `info`), ``traceback`` and ``children``.
            propagate: False: what the task raised is given back instead, though no type checker knows.

        Raises:
            InvalidArgumentsError: no timeout where one is needed, or what is no number; or `on_message`, and the call
                was made elsewhere, so that its states are not pushed to this process.
            ResultTimeoutError: nothing came within `timeout`; the task may still run.
            PulsarTasksError: the task keeps no results (``ignore_result=True``), the call was not sent yet, or it was
                told to `forget`.
            UnreadableMessageError: what the task returned does not fit its return annotation.
            TaskRevokedError: it was revoked or had expired.
            Exception: what the task raised in its last attempt: of its own type where that is imported here, else
                `TaskError`.
        """
        if self._result is None:
            self._check(timeout)
            self._result = self._wait(timeout, on_message)
        if self._result is not None:
            if on_message is not None:
                on_message(self._message(self._result))
            if not propagate and self._result.error is not None:
                return self._result.error.restore()  # type: ignore[return-value]
        return self._value(timeout)

    def _wait(self, timeout: float | None, on_message: Callable[[dict[str, Any]], object] | None) -> Result | None:
        store = self._kept_results()
        if on_message is None:
            return store.wait(self.id, timeout, pushed=self._sent_here)
        if not self._sent_here:
            raise InvalidArgumentsError(f"{self!r} was called elsewhere, where on_message would be told; ask for state")
        return store.watch(self.id, timeout, lambda state: on_message(self._message(state)))

    def _message(self, result: Result) -> dict[str, Any]:
        """As Celery's backends put it."""
        return {
            "task_id": self.id,
            "status": result.state,
            "result": self._info(result),
            "traceback": None if result.error is None else result.error.traceback,
            "children": self.children,
        }

    def _info(self, result: Result) -> Any:
        if result.error is not None:
            return result.error.restore()
        if result.ended:
            return self._codec.decode(result.value)
        return result.progress if result.meta is None else result.meta

    async def aget(self, timeout: float | None = None) -> R_co:
        """`get` from asyncio, whose loop goes on; however many wait, none has a thread of its own for a call that was
        made in this process. Whoever is cancelled may ask again.
        """
        if self._result is None:
            self._check(timeout)
            self._result = await self._kept_results().wait_async(self.id, timeout, pushed=self._sent_here)
        return self._value(timeout)

    def _check(self, timeout: float | None) -> None:
        if not isinstance(timeout, (int, float, type(None))):
            raise InvalidArgumentsError(f"timeout is a number of seconds or None, not {timeout!r}")
        if self._forgotten:
            raise PulsarTasksError(f"the result of {self.task}[{self.id}] was forgotten by forget()")
        if timeout is None and self.doubt:
            raise InvalidArgumentsError(f"{self.task} has {self.doubt}, so its result may never come: give a timeout")
        if self.block is not None and self.block.unsent:
            raise PulsarTasksError(f"no result of {self.task}[{self.id}]: {self.block.unsent}")

    def _value(self, timeout: float | None) -> R_co:
        if self._result is None:
            raise ResultTimeoutError(
                f"no result of {self.task}[{self.id}] within {timeout:g} s; it may still be waiting or running. "
                "Is there a worker, started in this folder or with this PULSARTASKS_BROKER?"
            )
        if self._result.error is not None:
            raise self._result.error.restore()
        try:
            return self._codec.decode(self._result.value)
        except UnreadableMessageError as error:
            raise UnreadableMessageError(
                f"{self.task} ended well, but what it returned is not what its return annotation says: {error}"
            ) from error

    @property
    def state(self) -> str:
        """``SUCCESS``, ``FAILURE``, ``REVOKED`` (or expired); of what has not ended how far it is, if that is told:
        ``RECEIVED``, ``STARTED``, ``PROGRESS``, ``RETRY``, or what the task said by ``self.update_state()``; else
        ``PENDING``: waiting, running, unknown, or long ago.
        """
        newest = self._look()
        return "PENDING" if newest is None else newest.state

    status = state

    @property
    def info(self) -> Any:
        """What goes with `state`: the value, or the exception of a ``FAILURE``, ``REVOKED`` or ``RETRY``; ``meta`` of
        ``self.update_state()``, `progress`, or of ``STARTED`` the ``pid`` and ``hostname``; else None.
        """
        newest = self._look()
        return None if newest is None else self._info(newest)

    result = info

    @property
    def progress(self) -> Progress | None:
        """What the task reported last by ``self.progress()``: done, total, message."""
        newest = self._look()
        return None if newest is None else newest.progress

    @property
    def next_attempt(self) -> NextAttempt | None:
        """When and why it is tried again, while its state is ``RETRY``."""
        newest = self._look()
        if newest is None or newest.state != "RETRY" or newest.error is None:
            return None
        return NextAttempt(datetime.fromtimestamp(newest.due, timezone.utc), newest.error.restore())

    def ready(self) -> bool:
        """Whether the task has ended, well or not."""
        newest = self._look()
        return newest is not None and newest.ended

    def successful(self) -> bool:
        return self.state == "SUCCESS"

    def failed(self) -> bool:
        return self.state == "FAILURE"

    def collect(self, *, intermediate: bool = False) -> Iterator[tuple[AsyncResult[Any] | GroupResult[Any], Any]]:
        """Each handle from this one on, and its value: first its own, then those of `children`, and of theirs.

        Args:
            intermediate: wait for none, and pass over what has not ended.

        Raises:
            IncompleteStream: one has not ended, and `intermediate` is not given.
            Exception: as `get`.
        """
        yield from _collect([self], intermediate=intermediate)

    @property
    def graph(self) -> DependencyGraph:
        """What follows it, as far as it was sent from here: ``print(call.graph)``, ``call.graph.to_dot(file)``."""
        return DependencyGraph(self)

    @property
    def label(self) -> str:
        """What it is called in a graph."""
        return self.id

    def revoke(self, *, terminate: bool = False) -> None:
        """Have the task not run; see `PulsarTasks.revoke`."""
        eta = None if self.due is None else datetime.fromtimestamp(self.due, timezone.utc)
        self._app.revoke(self.id, terminate=terminate, eta=eta)

    def forget(self) -> None:
        """Have its result, there already or not, not be had any more: for this handle at once, for look-ups by its id
        in any process from when this returns. Who waits for it already, or was pushed it, may still get it.

        It frees nothing before ``result_expires`` where results are on a topic.
        """
        self._kept_results().forget(self.id)
        self._forgotten, self._result, self._newest = True, None, None

    @property
    def traceback(self) -> str | None:
        """The worker's traceback if the task failed."""
        result = self._look()
        if result is None or result.error is None or result.state != "FAILURE":
            return None
        return result.error.traceback

    @property
    def retries(self) -> int | None:
        """How many attempts came before the one that it knows of last; None if it knows of none."""
        newest = self._look()
        return None if newest is None else newest.retries

    @property
    def args(self) -> list[Any] | None:
        """As JSON gives them, once it has ended; as `kwargs`, `worker` and `queue` None without ``result_extended``."""
        return self._extended.args

    @property
    def kwargs(self) -> dict[str, Any] | None:
        return self._extended.kwargs

    @property
    def worker(self) -> str | None:
        """Host and process id."""
        return self._extended.worker

    @property
    def queue(self) -> str | None:
        """Full name of the topic of its task's calls."""
        return self._extended.queue

    @property
    def stamps(self) -> dict[str, Any] | None:
        """What it was labelled with; see `Canvas.stamp`."""
        return self._extended.stamps

    @property
    def _extended(self) -> Extended:
        newest = self._look()
        return Extended() if newest is None or newest.extended is None else newest.extended

    @property
    def seen(self) -> bool:
        """Whether its result is known here."""
        return self._result is not None

    def see(self, result: Result) -> None:
        """Take its result, which somebody has waited for."""
        self._result = result

    def results_of(self, task_ids: Collection[str], timeout: float | None) -> Iterator[Result]:
        """The results of calls that have its `source`, as they arrive; raises as `get`."""
        self._check(timeout)
        return self._kept_results().each(task_ids, timeout, pushed=self._sent_here)

    @property
    def source(self) -> object:
        """Where its result comes from; what compares equal can be waited for together."""
        store = None if self._store is None else self._kept_results()
        return store, self._sent_here, self.doubt, "" if self.block is None else self.block.unsent

    def _look(self) -> Result | None:
        """Its result, or how far it is.

        Of a call made here that was pushed; what is kept is looked at first, if a push may have been missed, and then
        every `LOOK_AGAIN` seconds: so a loop that asks costs nothing.
        """
        if self._result is not None or self._forgotten:
            return self._result
        store = self._kept_results()
        time_to_look = True
        if self._sent_here:
            heard, complete = store.heard(self.id)
            self._newest = newer(self._newest, heard)
            time_to_look = self._time_to_look(complete)
        if time_to_look and (self._newest is None or not self._newest.ended):
            self._newest = newer(self._newest, store.find(self.id) or store.find_state(self.id))
            self._looked_at = time.monotonic()
        if self._newest is not None and self._newest.ended:
            self._result = self._newest
        return self._newest

    def _time_to_look(self, complete: bool) -> bool:
        if self._looked_at is None and complete:
            self._looked_at = time.monotonic()
        return self._looked_at is None or time.monotonic() - self._looked_at >= LOOK_AGAIN

    def _kept_results(self) -> ResultStore:
        if self._store is None:
            raise PulsarTasksError(
                f"{self.task} keeps no results (ignore_result=True); leave that option out to wait for them"
            )
        if self._pid != os.getpid():  # inherited through a fork: the store is the parent's, and so is what is pushed
            self._store, self._sent_here, self._pid = self._app.results, False, os.getpid()
        return self._store

    def __repr__(self) -> str:
        return f"<AsyncResult {self.task}[{self.id}]>"


class GroupResult(Generic[R_co]):
    """The calls of a group that was sent, in the group's order; it has no id of its own."""

    def __init__(
        self,
        results: Sequence[AsyncResult[R_co]],
        *,
        parent: AsyncResult[Any] | GroupResult[Any] | None = None,
    ) -> None:
        self.results = tuple(results)
        self.parent = parent
        """Of the call before it in its canvas."""

    def get(self, timeout: float | None = None) -> list[R_co]:
        """The return values of all, in the group's order, as soon as they are there; `join` is the same.

        Args:
            timeout: seconds for all of them together; None waits without end.

        Raises:
            ResultTimeoutError: they were not all there within `timeout`.
            Exception: as `AsyncResult.get`, of the first that turns out to have failed; others may still run.
        """
        for call in self.as_completed(timeout):
            if not call.successful():
                call.get()
        return [result.get() for result in self.results]

    join = get

    async def aget(self, timeout: float | None = None) -> list[R_co]:
        """`get` from asyncio, whose loop goes on; it takes one thread for the group."""
        return await asyncio.to_thread(self.get, timeout)

    def as_completed(self, timeout: float | None = None) -> Iterator[AsyncResult[Any]]:
        """Its calls one by one as they end, well or not; of a group within it the calls of that.

        Raises:
            ResultTimeoutError: not all had ended after `timeout` seconds (None waits without end).
            PulsarTasksError: as `AsyncResult.get`, if there can be no result.
        """
        left: dict[str, AsyncResult[Any]] = {}
        for call in self.calls():
            if call.seen:
                yield call
            else:
                left[call.id] = call
        while left:
            first = next(iter(left.values()))
            alike = [id_ for id_, call in left.items() if call.source == first.source]
            for result in first.results_of(alike, timeout):
                call = left.pop(result.id)
                call.see(result)
                yield call
            if late := [left[id_] for id_ in alike if id_ in left]:
                raise ResultTimeoutError(f"{len(late)} of {len(self.calls())} calls have not ended, {late[0]!r} first")

    def calls(self) -> Sequence[AsyncResult[Any]]:
        """Its calls, and those of groups within it."""
        results: Sequence[Any] = self.results
        return [
            call for result in results for call in (result.calls() if isinstance(result, GroupResult) else (result,))
        ]

    def ready(self) -> bool:
        """Whether all have ended, well or not."""
        return all(result.ready() for result in self.results)

    def waiting(self) -> bool:
        """Whether any has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Whether all have ended well."""
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Whether any has failed."""
        return any(result.failed() for result in self.results)

    def completed_count(self) -> int:
        """How many have ended well."""
        return sum(call.successful() for call in self.calls())

    def revoke(self, *, terminate: bool = False) -> None:
        """Have none of them run; see `PulsarTasks.revoke`."""
        for result in self.results:
            result.revoke(terminate=terminate)

    def forget(self) -> None:
        """Have their results not be had any more; see `AsyncResult.forget`."""
        for result in self.results:
            result.forget()

    @property
    def children(self) -> Sequence[AsyncResult[R_co]]:
        """Its calls, under Celery's name."""
        return self.results

    @property
    def label(self) -> str:
        """What it is called in a graph."""
        return repr(self)

    def __iter__(self) -> Iterator[AsyncResult[R_co]]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> AsyncResult[R_co]:
        return self.results[index]

    def __repr__(self) -> str:
        return f"<GroupResult of {len(self.results)}>"


def _collect(
    handles: Sequence[AsyncResult[Any] | GroupResult[Any]], *, intermediate: bool
) -> Iterator[tuple[AsyncResult[Any] | GroupResult[Any], Any]]:
    left = deque(handles)
    while left:
        handle = left.popleft()
        if handle.ready():
            yield handle, handle.get()
        elif not intermediate:
            raise IncompleteStream(f"{handle!r} has not ended; collect(intermediate=True) gives what has")
        left.extend(handle.children)
