"""The handle of a call: wait for its result, from any thread."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from pulsartasks.errors import InvalidArgumentsError, PulsarTasksError, ResultTimeoutError, UnreadableMessageError
from pulsartasks.publishing import Block
from pulsartasks.results.base import Result, ResultStore, State
from pulsartasks.serializers import PayloadCodec

R = TypeVar("R")


class Revoke(Protocol):
    """Revokes one call."""

    def __call__(self, *, terminate: bool = False) -> None: ...


class AsyncResult(Generic[R]):
    """One call that was sent, known by its id."""

    def __init__(
        self,
        task_id: str,
        store: ResultStore | None,
        codec: PayloadCodec[R],
        *,
        task: str,
        revoke: Revoke,
        sent_here: bool = True,
    ) -> None:
        self.id = task_id
        self.task = task
        self._store = store
        self._codec = codec
        self._revoke = revoke
        self._sent_here = sent_here
        self._result: Result | None = None
        self.block: Block | None = None
        """Of what it leaves with, if it was called in a block of ``app.publishing()``."""
        self.durable = True
        """Whether the call waits for a worker; else nobody may ever answer."""

    def get(self, timeout: float | None = None) -> R:
        """The task's return value, as soon as the worker pushes it; nothing is polled.

        Args:
            timeout: seconds to wait; None waits without end, which a task with ``durable=False`` does not allow.

        Raises:
            InvalidArgumentsError: no timeout, and the task has ``durable=False``.
            ResultTimeoutError: nothing came within `timeout`; the task may still run.
            PulsarTasksError: the task keeps no results (``ignore_result=True``), or the call was not sent yet.
            UnreadableMessageError: what the task returned does not fit its return annotation.
            TaskRevokedError: it was revoked or had expired.
            Exception: what the task raised in its last attempt: of its own type where that is imported here, else
                `TaskError`.
        """
        if self._result is None:
            self._check(timeout)
            self._result = self._kept_results().wait(self.id, timeout, pushed=self._sent_here)
        return self._value(timeout)

    async def aget(self, timeout: float | None = None) -> R:
        """`get` from asyncio, whose loop goes on; however many wait, none has a thread of its own for a call that was
        made in this process. Whoever is cancelled may ask again.
        """
        if self._result is None:
            self._check(timeout)
            self._result = await self._kept_results().wait_async(self.id, timeout, pushed=self._sent_here)
        return self._value(timeout)

    def _check(self, timeout: float | None) -> None:
        if timeout is None and not self.durable:
            raise InvalidArgumentsError(f"{self.task} has durable=False, so its result may never come: give a timeout")
        if self.block is not None and self.block.unsent:
            raise PulsarTasksError(f"no result of {self.task}[{self.id}]: {self.block.unsent}")

    def _value(self, timeout: float | None) -> R:
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
    def state(self) -> State:
        """``SUCCESS``, ``FAILURE``, ``REVOKED`` (or expired), or ``PENDING``: not ended, not known or long ago."""
        result = self._look()
        return "PENDING" if result is None else result.state

    def ready(self) -> bool:
        """Whether the task has ended, well or not."""
        return self.state != "PENDING"

    def successful(self) -> bool:
        return self.state == "SUCCESS"

    def failed(self) -> bool:
        return self.state == "FAILURE"

    def revoke(self, *, terminate: bool = False) -> None:
        """Have the task not run; see `PulsarTasks.revoke`."""
        self._revoke(terminate=terminate)

    @property
    def traceback(self) -> str | None:
        """The worker's traceback if the task failed."""
        result = self._look()
        if result is None or result.error is None or result.state != "FAILURE":
            return None
        return result.error.traceback

    def _look(self) -> Result | None:
        if self._result is None:
            self._result = self._kept_results().find(self.id)
        return self._result

    def _kept_results(self) -> ResultStore:
        if self._store is None:
            raise PulsarTasksError(
                f"{self.task} keeps no results (ignore_result=True); leave that option out to wait for them"
            )
        return self._store

    def __repr__(self) -> str:
        return f"<AsyncResult {self.task}[{self.id}]>"
