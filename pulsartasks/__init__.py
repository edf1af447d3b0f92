"""Tasks on Apache Pulsar: a decorator maps a function onto a topic and a subscription."""

from pulsartasks.app import PulsarTasks
from pulsartasks.claims import ClaimCheck
from pulsartasks.clock import FrozenClock
from pulsartasks.context import TaskContext
from pulsartasks.errors import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    BrokerUnavailableError,
    CallError,
    CapabilityError,
    ClosedError,
    ConfigurationError,
    IncompatibleSchemaError,
    InvalidArgumentsError,
    MaxRetriesExceededError,
    MessageError,
    MessageTooLargeError,
    PublishTimeoutError,
    PulsarTasksError,
    Reject,
    ResultTimeoutError,
    Retry,
    SoftTimeLimitExceeded,
    SubscriptionBusyError,
    TaskError,
    TaskRevokedError,
    TimeLimitExceeded,
    UnacknowledgedError,
    UnconfirmedError,
    UnknownTaskError,
    UnreadableMessageError,
    WorkerCrashedError,
)
from pulsartasks.message import DeadLetter, Request
from pulsartasks.result import AsyncResult
from pulsartasks.schedule import Schedule, crontab, every
from pulsartasks.shared import shared_task
from pulsartasks.signature import Signature
from pulsartasks.task import INJECTED, Task
from pulsartasks.topic import Tail, Topic

__all__ = [
    "INJECTED",
    "AsyncResult",
    "AuthenticationError",
    "AuthorizationError",
    "BrokerError",
    "BrokerUnavailableError",
    "CallError",
    "CapabilityError",
    "ClaimCheck",
    "ClosedError",
    "ConfigurationError",
    "DeadLetter",
    "FrozenClock",
    "IncompatibleSchemaError",
    "InvalidArgumentsError",
    "MaxRetriesExceededError",
    "MessageError",
    "MessageTooLargeError",
    "PublishTimeoutError",
    "PulsarTasks",
    "PulsarTasksError",
    "Reject",
    "Request",
    "ResultTimeoutError",
    "Retry",
    "Schedule",
    "Signature",
    "SoftTimeLimitExceeded",
    "SubscriptionBusyError",
    "Tail",
    "Task",
    "TaskContext",
    "TaskError",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "Topic",
    "UnacknowledgedError",
    "UnconfirmedError",
    "UnknownTaskError",
    "UnreadableMessageError",
    "WorkerCrashedError",
    "crontab",
    "every",
    "shared_task",
]
