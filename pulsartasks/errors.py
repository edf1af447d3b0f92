"""Everything that pulsartasks raises, as one tree.

PulsarTasksError
├── ConfigurationError          a definition, option or setting is wrong: at import or start, never later
│   └── CapabilityError         the chosen broker cannot do what was asked
├── CallError                   a call is refused before anything was sent
│   ├── InvalidArgumentsError
│   └── MessageTooLargeError
├── MessageError                a received message cannot be run: it becomes a dead letter
│   ├── UnreadableMessageError
│   └── UnknownTaskError
├── BrokerError                 the broker said no, or nothing
│   ├── BrokerUnavailableError  (also a ConnectionError)
│   ├── PublishTimeoutError     (also a TimeoutError)
│   ├── AuthenticationError
│   ├── AuthorizationError
│   ├── SubscriptionBusyError
│   ├── IncompatibleSchemaError
│   ├── UnconfirmedError        (also a ConnectionError)
│   └── ClosedError
├── ResultTimeoutError          (also a TimeoutError)
├── ResultStoreError            (also a ConnectionError)
├── IncompleteStream            not all of a canvas has ended yet
├── WorkerCrashedError          a task took its worker process with it, too often
├── TimeLimitExceeded           (also a TimeoutError) a task's process was killed by its hard time limit
├── UnacknowledgedError         a task with ack="manual" ended without self.ack()
├── TaskError                   a task failed elsewhere with an exception that cannot be rebuilt here
├── ChordError                  a part of a chord failed, so what was to follow its parts was not run
├── TaskRevokedError            a task was not run, or not to its end: it was revoked or had expired
├── SoftTimeLimitExceeded       raised inside a task that runs longer than its ``soft_time_limit``
└── MaxRetriesExceededError

``Retry``, ``Reject`` and ``Ignore`` are verbs, not failures: a task raises them to say what becomes of its message.
``Replace`` is raised by ``self.replace()``: the task's result is to be that of other calls.
``Terminate`` is what ``revoke(terminate=True)`` raises inside a running one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PulsarTasksError(Exception):
    """Something in pulsartasks went wrong; the base of every error it raises."""


class ConfigurationError(PulsarTasksError):
    """A task, topic, option or setting is wrong; the message says which and what to write instead."""


class CapabilityError(ConfigurationError):
    """The chosen broker lacks what this definition needs."""


class CallError(PulsarTasksError):
    """A call was refused and nothing was sent."""


class InvalidArgumentsError(CallError, TypeError):
    """The arguments do not fit the task: their number, names, types, or that they are not data."""


class MessageTooLargeError(CallError, ValueError):
    """The message is larger than the broker takes; ``claim_check=`` sends what is large through a blob store."""


class MessageError(PulsarTasksError):
    """A received message cannot be run as it is; it is kept as a dead letter with this reason."""


class UnreadableMessageError(MessageError):
    """The message's bytes are not what its task takes."""


class UnknownTaskError(MessageError):
    """No task of this name is registered in this worker."""


class BrokerError(PulsarTasksError):
    """The broker refused an operation."""


class BrokerUnavailableError(BrokerError, ConnectionError):
    """The broker cannot be reached; as a ``ConnectionError`` it fits ``autoretry_for=(OSError,)``."""


class PublishTimeoutError(BrokerError, TimeoutError):
    """The broker did not confirm a message in time; it may or may not have been stored."""


class BacklogFullError(BrokerError):
    """The topic holds as much as it may, and the message was not stored; call again when workers have caught up."""


class AuthenticationError(BrokerError):
    """The broker does not accept the credentials."""


class AuthorizationError(BrokerError):
    """The credentials are valid but do not permit this operation."""


class SubscriptionBusyError(BrokerError):
    """Another consumer holds the subscription in a mode that does not share it."""


class IncompatibleSchemaError(BrokerError):
    """The topic has a schema that this publisher's type does not fit; nothing was sent."""


class UnconfirmedError(BrokerError, ConnectionError):
    """Of what was sent together, by ``app.publishing()`` or `Task.map`, the broker did not confirm all; `failures` says
    which.
    """

    def __init__(self, failures: Mapping[str, PulsarTasksError], of: int, *, calls: Any = None) -> None:
        few = [f"{name}: {error}" for name, error in failures.items()][:3]
        rest = ["..."] if len(failures) > len(few) else []
        super().__init__(f"{len(failures)} of {of} were not confirmed: {'; '.join(few + rest)}")
        self.failures = failures
        """For each its call (``task[id]``) or event (``topic[place in the block]``), and what went wrong."""
        self.calls = calls
        """Of `Task.map`: the `GroupResult` of all calls, in the order of the items."""


class ClosedError(BrokerError):
    """The broker connection, consumer or reader was closed."""


class ResultTimeoutError(PulsarTasksError, TimeoutError):
    """No result arrived within the timeout; the task may still be waiting or running."""


class ResultStoreError(PulsarTasksError, ConnectionError):
    """The database of results cannot be reached, or did not do what was asked; workers try again."""


class IncompleteStream(PulsarTasksError):  # noqa: N818 - Celery's name
    """Not all that follows a call has ended yet; ``collect(intermediate=True)`` gives what there is."""


class WorkerCrashedError(PulsarTasksError):
    """The worker process died each time while it ran this message; what killed it left no exception."""


class TimeLimitExceeded(PulsarTasksError, TimeoutError):  # noqa: N818 - Celery's name
    """The task was still running when its hard ``time_limit`` ended, so its process was killed."""


class TaskError(PulsarTasksError):
    """A task failed with an exception that cannot be rebuilt here; this one stands in for it and tells the same."""

    def __init__(self, text: str = "", type: str = "", message: str = "", traceback: str = "") -> None:  # noqa: A002
        super().__init__(text)
        self.type = type
        """Of the task's own exception, e.g. ``shop.errors.OutOfStock``."""
        self.message = message
        """What that says."""
        self.traceback = traceback
        """The worker's, with the exceptions that led to it."""

    def __reduce__(self) -> tuple[type[TaskError], tuple[str, ...]]:
        return TaskError, (str(self), self.type, self.message, self.traceback)


class RemoteTraceback(Exception):  # noqa: N818 - it is shown as the cause, above what was raised
    """The worker's traceback: the ``__cause__`` of what `AsyncResult.get` raises, so that Python shows it."""

    def __str__(self) -> str:
        return f"in the worker:\n\n{self.args[0]}"


class ChordError(PulsarTasksError):
    """A part of a chord failed or never ended; the text names it and its error. What was to follow was not run."""


class UnacknowledgedError(PulsarTasksError):
    """A task with ``ack="manual"`` returned without ``self.ack()``, or called it when it had ended."""


class TaskRevokedError(PulsarTasksError):
    """The task was ``revoked`` or had ``expired`` before it began, or was ``terminated`` while it ran; or it would have
    come behind one that was, or that raised `Ignore` (``ignored``).
    """


class SoftTimeLimitExceeded(PulsarTasksError):  # noqa: N818 - Celery's name, which tasks catch
    """Raised inside a task that has run for its ``soft_time_limit``; it may catch this, tidy up and return."""

    def __init__(self, message: str = "the task ran longer than its soft_time_limit") -> None:
        super().__init__(message)


class MaxRetriesExceededError(PulsarTasksError):
    """``self.retry()`` was called with no retry left and no exception to raise instead."""


class Retry(Exception):  # noqa: N818 - control flow is a bare verb
    """Run this message again after `delay` seconds, if a retry is left; raised by ``self.retry()``."""

    counted = False
    """Whether it is known already that one is left; by other rules than the task's, maybe."""

    def __init__(self, delay: float, cause: BaseException | None = None) -> None:
        super().__init__(f"retry in {delay:g} s")
        self.delay = delay
        self.cause = cause


class Reject(Exception):  # noqa: N818 - control flow is a bare verb
    """Stop here: the message becomes a dead letter with this reason, whatever its retries.

    With `requeue` it is run again instead, at once and however often that has been; ``self.retries`` counts it.
    """

    def __init__(self, reason: object = "", requeue: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.requeue = requeue


class Ignore(Exception):  # noqa: N818 - control flow is a bare verb
    """Stop here and keep nothing of it: the message is acknowledged, without a result or a dead letter.

    Whoever waits for its result waits in vain, and what was to follow it in a canvas is not run.
    """


class Replace(Exception):  # noqa: N818 - control flow is a bare verb
    """Have `canvas` run in place of this task, whose result is to be that of its last call: ``self.replace()``."""

    def __init__(self, canvas: Any) -> None:
        super().__init__(f"replaced by {canvas!r}")
        self.canvas = canvas


class Terminate(BaseException):
    """Raised inside a running task by ``revoke(terminate=True)``; no ``Exception``, so that a task does not retry it.

    An ``async def`` task is cancelled instead, as asyncio does it.
    """


TRANSIENT = (OSError, AuthenticationError, BacklogFullError, ClosedError)
"""What passes, of the errors above: a broker or blob store that is away is an ``OSError`` too."""
