"""Tasks on Apache Pulsar: a decorator maps a function onto a topic and a subscription."""

from pulsartasks.app import PulsarTasks
from pulsartasks.batch import Batch
from pulsartasks.canvas import Canvas, chain, chord, group
from pulsartasks.claims import ClaimCheck
from pulsartasks.clock import FrozenClock
from pulsartasks.context import TaskContext
from pulsartasks.errors import (
    AuthenticationError,
    AuthorizationError,
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    CallError,
    CapabilityError,
    ChordError,
    ClosedError,
    ConfigurationError,
    Ignore,
    IncompatibleSchemaError,
    IncompleteStream,
    InvalidArgumentsError,
    MaxRetriesExceededError,
    MessageError,
    MessageTooLargeError,
    PublishTimeoutError,
    PulsarTasksError,
    Reject,
    ResultStoreError,
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
from pulsartasks.middleware.base import Middleware
from pulsartasks.result import AsyncResult, GroupResult, NextAttempt
from pulsartasks.results.base import Failure, Progress
from pulsartasks.schedule import Schedule, crontab, every
from pulsartasks.shared import shared_task
from pulsartasks.signature import Signature
from pulsartasks.stamping import StampingVisitor
from pulsartasks.task import INJECTED, Task
from pulsartasks.topic import Tail, Topic

__all__ = [
    "INJECTED",
    "AsyncResult",
    "AuthenticationError",
    "AuthorizationError",
    "BacklogFullError",
    "Batch",
    "BrokerError",
    "BrokerUnavailableError",
    "CallError",
    "Canvas",
    "CapabilityError",
    "ChordError",
    "ClaimCheck",
    "ClosedError",
    "ConfigurationError",
    "DeadLetter",
    "Failure",
    "FrozenClock",
    "GroupResult",
    "Ignore",
    "IncompatibleSchemaError",
    "IncompleteStream",
    "InvalidArgumentsError",
    "MaxRetriesExceededError",
    "MessageError",
    "MessageTooLargeError",
    "Middleware",
    "NextAttempt",
    "Progress",
    "PublishTimeoutError",
    "PulsarTasks",
    "PulsarTasksError",
    "Reject",
    "Request",
    "ResultStoreError",
    "ResultTimeoutError",
    "Retry",
    "Schedule",
    "Signature",
    "SoftTimeLimitExceeded",
    "StampingVisitor",
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
    "chain",
    "chord",
    "crontab",
    "every",
    "group",
    "shared_task",
]
