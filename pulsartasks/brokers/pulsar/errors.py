"""Where every error of the Pulsar client becomes one of ours, by the name that exception and result code share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pulsar

from pulsartasks.errors import (
    AuthenticationError,
    AuthorizationError,
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    IncompatibleSchemaError,
    MessageTooLargeError,
    PulsarTasksError,
    SubscriptionBusyError,
)


class PublishersHeldError(BacklogFullError):
    """The quota's policy is to hold publishers until there is room again (``producer_request_hold``)."""


ERRORS: Mapping[str, type[PulsarTasksError]] = {
    "AlreadyClosed": ClosedError,
    "AuthenticationError": AuthenticationError,
    "AuthorizationError": AuthorizationError,
    "BrokerMetadataError": BrokerUnavailableError,
    "BrokerPersistenceError": BrokerUnavailableError,
    "ChecksumError": BrokerError,
    "ConnectError": BrokerUnavailableError,
    "ConsumerAssignError": BrokerError,
    "ConsumerBusy": SubscriptionBusyError,
    "ConsumerNotFound": BrokerError,
    "ConsumerNotInitialized": ClosedError,
    "CryptoError": BrokerError,
    "CumulativeAcknowledgementNotAllowedError": BrokerError,
    "ErrorGettingAuthenticationData": AuthenticationError,
    "IncompatibleSchema": IncompatibleSchemaError,
    "InvalidConfiguration": BrokerError,
    "InvalidMessage": BrokerError,
    "InvalidTopicName": BrokerError,
    "InvalidTxnStatusError": BrokerError,
    "InvalidUrl": BrokerError,
    "LookupError": BrokerUnavailableError,
    "MemoryBufferIsFull": BrokerError,
    "MessageTooBig": MessageTooLargeError,
    "NotAllowedError": BrokerError,
    "NotConnected": BrokerUnavailableError,
    "OperationNotSupported": BrokerError,
    "ProducerBlockedQuotaExceededError": PublishersHeldError,
    "ProducerBlockedQuotaExceededException": BacklogFullError,
    "ProducerBusy": BrokerUnavailableError,
    "ProducerFenced": BrokerError,
    "ProducerNotInitialized": ClosedError,
    "ProducerQueueIsFull": BrokerError,
    "PulsarException": BrokerError,
    "ReadError": BrokerUnavailableError,
    "ServiceUnitNotReady": BrokerUnavailableError,
    "SubscriptionNotFound": BrokerError,
    "Timeout": BrokerUnavailableError,
    "TooManyLookupRequestException": BrokerUnavailableError,
    "TopicNotFound": BrokerError,
    "TopicTerminated": BrokerError,
    "TransactionConflict": BrokerError,
    "TransactionCoordinatorNotFoundError": BrokerError,
    "TransactionNotFound": BrokerError,
    "UnknownError": BrokerError,
    "UnsupportedVersionError": BrokerError,
}

_HINTS: Mapping[str, str] = {
    "MessageTooBig": "give the app claim_check=, which sends what is large through a blob store",
    "ConnectError": "is it running, and do address, TLS authority and host name fit? client_log= in the URL tells more",
    "Timeout": "it did not answer in time; it is down or overloaded",
    "CryptoError": "the public or private key could not be read; client_log= in the URL tells more",
    "TopicNotFound": "the tenant or namespace does not exist, or the broker makes no topics by itself",
    "NotAllowedError": "a policy of the topic or namespace forbids it",
    "ProducerBlockedQuotaExceededError": "the backlog quota of the topic is used up",
    "ProducerBlockedQuotaExceededException": "the backlog quota of the topic is used up",
    "IncompatibleSchema": "the topic has a schema, which this publisher's does not fit or which it does not name",
    "ProducerBusy": "another process publishes under the same name",
    "ConsumerBusy": "another consumer holds the subscription, or uses it in another mode",
}


def to_error(name: str, doing: str) -> PulsarTasksError:
    """Our error for the client's `name`, which an exception's type and a result code have in common."""
    hint = _HINTS.get(name)
    return ERRORS.get(name, BrokerError)(f"could not {doing}: {name}" + (f" ({hint})" if hint else ""))


def from_result(result: Any, doing: str) -> PulsarTasksError:
    """Our error for a result code that a callback was given."""
    return to_error(str(result.name), doing)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """What the client raises inside comes out as our error, saying that one could not `doing`."""
    try:
        yield
    except pulsar.Interrupted:
        # The client raises this in place of what a signal handler raised, and nobody can tell any more what that was.
        raise KeyboardInterrupt from None
    except pulsar.PulsarException as error:
        raise to_error(type(error).__name__, doing) from error
