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
│   └── ClosedError
├── ResultTimeoutError          (also a TimeoutError)
├── WorkerCrashedError          a task took its worker process with it, too often
├── TimeLimitExceeded           (also a TimeoutError) a task's process was killed by its hard time limit
├── UnacknowledgedError         a task with ack="manual" ended without self.ack()
├── TaskError                   a task failed elsewhere with an exception that cannot be rebuilt here
└── MaxRetriesExceededError

``Retry`` and ``Reject`` are verbs, not failures: a task raises them to say what is to become of its message.
"""

from __future__ import annotations


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


class AuthenticationError(BrokerError):
    """The broker does not accept the credentials."""


class AuthorizationError(BrokerError):
    """The credentials are valid but do not permit this operation."""


class SubscriptionBusyError(BrokerError):
    """Another consumer holds the subscription in a mode that does not share it."""


class IncompatibleSchemaError(BrokerError):
    """The topic has a schema that this publisher's type does not fit; nothing was sent."""


class ClosedError(BrokerError):
    """The broker connection, consumer or reader was closed."""


class ResultTimeoutError(PulsarTasksError, TimeoutError):
    """No result arrived within the timeout; the task may still be waiting or running."""


class WorkerCrashedError(PulsarTasksError):
    """The worker process died each time while it ran this message; what killed it left no exception."""


class TimeLimitExceeded(PulsarTasksError, TimeoutError):  # noqa: N818 - Celery's name
    """The task was still running when its hard ``time_limit`` ended, so its process was killed."""


class TaskError(PulsarTasksError):
    """A task failed with an exception whose type cannot be rebuilt here; the text names it."""


class UnacknowledgedError(PulsarTasksError):
    """A task with ``ack="manual"`` returned without ``self.ack()``, or called it when it had ended."""


class MaxRetriesExceededError(PulsarTasksError):
    """``self.retry()`` was called with no retry left and no exception to raise instead."""


class Retry(Exception):  # noqa: N818 - control flow is a bare verb
    """Run this message again after `delay` seconds; raised by ``self.retry()``."""

    def __init__(self, delay: float, cause: BaseException | None = None) -> None:
        super().__init__(f"retry in {delay:g} s")
        self.delay = delay
        self.cause = cause


class Reject(Exception):  # noqa: N818 - control flow is a bare verb
    """Stop here: the message becomes a dead letter with this reason, whatever its retries."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
