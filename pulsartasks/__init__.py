"""Tasks on Apache Pulsar: a decorator maps a function onto a topic and a subscription."""

from pulsartasks.app import PulsarTasks
from pulsartasks.claims import ClaimCheck
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
    SubscriptionBusyError,
    TaskError,
    TimeLimitExceeded,
    UnacknowledgedError,
    UnknownTaskError,
    UnreadableMessageError,
    WorkerCrashedError,
)
from pulsartasks.message import DeadLetter, Request
from pulsartasks.result import AsyncResult
from pulsartasks.signature import Signature
from pulsartasks.task import Task
from pulsartasks.topic import Tail, Topic

__all__ = [
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
    "Signature",
    "SubscriptionBusyError",
    "Tail",
    "Task",
    "TaskContext",
    "TaskError",
    "TimeLimitExceeded",
    "Topic",
    "UnacknowledgedError",
    "UnknownTaskError",
    "UnreadableMessageError",
    "WorkerCrashedError",
]
