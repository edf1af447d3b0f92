"""What people import from pulsartasks. A change here is a decision, and a line in the changelog."""

from __future__ import annotations

import pulsartasks

PUBLIC = {
    "group",
    "chord",
    "chain",
    "GroupResult",
    "Failure",
    "ChordError",
    "Canvas",
    "AsyncResult",
    "AuthenticationError",
    "AuthorizationError",
    "BacklogFullError",
    "Batch",
    "BrokerError",
    "BrokerUnavailableError",
    "CallError",
    "CapabilityError",
    "ClaimCheck",
    "ClosedError",
    "ConfigurationError",
    "DeadLetter",
    "FrozenClock",
    "INJECTED",
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
    "TimeLimitExceeded",
    "TaskRevokedError",
    "Topic",
    "UnacknowledgedError",
    "UnconfirmedError",
    "UnknownTaskError",
    "UnreadableMessageError",
    "WorkerCrashedError",
    "crontab",
    "every",
    "shared_task",
}


def test_public_names_are_these() -> None:
    assert set(pulsartasks.__all__) == PUBLIC


def test_public_names_are_there() -> None:
    assert [name for name in pulsartasks.__all__ if not hasattr(pulsartasks, name)] == []
