"""Claim check: a payload too large for a message lies in a blob store, and the message carries its claim.

The claim is the header ``pt-claim``. It travels on with retries and dead letters, so the payload is stored once,
however often its message is copied, and whoever gets a copy finds it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from pulsartasks import plugins
from pulsartasks.brokers.base import MAX_MESSAGE_SIZE, Claims
from pulsartasks.errors import ConfigurationError, PulsarTasksError, UnreadableMessageError
from pulsartasks.message import CLAIM, Publication
from pulsartasks.middleware.base import Publish
from pulsartasks.serializers import UNREADABLE

FOLDER = "claims"
"""What the keys of claimed blobs begin with, before the day in UTC."""


class Store(Protocol):
    """What is needed of a blob store: see `pulsartasks.contrib.blobs.BlobStore`."""

    def put(self, key: str, data: bytes, content_type: str = ...) -> None: ...
    def get(self, key: str) -> Any: ...


class Claim(msgspec.Struct, frozen=True):
    """What the header says of the payload."""

    key: str
    size: int
    """Bytes."""
    sha256: str


class ClaimCheck(Claims):
    """Sends payloads, arguments and results of more than `above` bytes through a blob store.

    Args:
        store: a URL as `pulsartasks.contrib.blobs.open_blob_store` takes it, or such a store. All apps that send each
            other messages need the same one.
        above: bytes of JSON.

    Nothing removes the blobs: how long they are kept is a rule of the store (docs/blobs.md).

    Raises:
        ConfigurationError: the URL is no store's, or `above` is more than a message may have.
    """

    def __init__(self, store: str | Store, *, above: int = 1_000_000) -> None:
        if not 0 <= above <= MAX_MESSAGE_SIZE:
            raise ConfigurationError(f"claim_check: above must be from 0 to {MAX_MESSAGE_SIZE:,} bytes, not {above!r}")
        self.above = above
        self._blobs: Any = plugins.load("contrib", "blobs")
        self._store: Store = self._blobs.open_blob_store(store) if isinstance(store, str) else store

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        """Send all, the large ones by claim; one whose payload the store does not take is not sent."""
        stowed, refused = [], {}
        for index, publication in enumerate(publications):
            try:
                stowed.append(self.stow(publication))
            except PulsarTasksError as error:
                refused[index] = error
        confirmed = iter(call_next(stowed))
        return [refused[index] if index in refused else next(confirmed) for index in range(len(publications))]

    def stow(self, publication: Publication) -> Publication:
        value = publication.value
        if len(value) <= self.above:
            return publication
        digest = hashlib.sha256(value).hexdigest()
        # By the day, so that a rule may let go of old ones; by the digest, so that sending again stores nothing new.
        key = f"{FOLDER}/{time.strftime('%Y-%m-%d', time.gmtime())}/{digest}"
        self._store.put(key, value, "application/json")
        claim = msgspec.json.encode(Claim(key, len(value), digest)).decode()
        return msgspec.structs.replace(publication, value=b"null", properties={**publication.properties, CLAIM: claim})

    def fetch(self, value: bytes, headers: Mapping[str, str]) -> bytes:
        if CLAIM not in headers:
            return value
        claim = read_claim(headers)
        try:
            data: bytes = self._store.get(claim.key).data
        except (self._blobs.BlobNotFoundError, self._blobs.InvalidBlobKeyError) as error:
            raise UnreadableMessageError(f"its payload is not in the blob store (any more): {error}") from error
        if hashlib.sha256(data).hexdigest() != claim.sha256:  # anybody may write a header
            raise UnreadableMessageError(f"blob {claim.key!r} is not the payload that was sent")
        return data


def read_claim(headers: Mapping[str, str]) -> Claim:
    """What the message refers to.

    Raises:
        UnreadableMessageError: its header is not a claim.
    """
    try:
        return msgspec.json.decode(headers[CLAIM], type=Claim)
    except UNREADABLE as error:
        raise UnreadableMessageError(f"its header {CLAIM} is not a claim: {error}") from error
