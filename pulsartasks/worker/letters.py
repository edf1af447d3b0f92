"""The copies of a message that settling it may need: one to be tried again, and its dead letter."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timezone

from pulsartasks import message
from pulsartasks.brokers.base import check_size
from pulsartasks.message import Publication
from pulsartasks.outcome import Died
from pulsartasks.results.base import text_of, traceback_of
from pulsartasks.worker.run import Run

LONGEST_TRACEBACK = 16_384
"""Characters of a traceback that travel with a dead letter; its end says most."""
SHORT_STORY = 500
"""Characters of it, and of the error's text, that travel with a message that hardly leaves room for them."""

CUT_VALUE = 1024 * 1024
"""Bytes of the value that are kept of a message which is too large to be kept."""


def retry_copy(run: Run, delay: float, *, now: float) -> Publication:
    """The message as it runs again `delay` seconds after the instant `now`."""
    due = min(now + delay, message.LATEST_ETA)
    return Publication(
        topic=run.route.task.topics.retry,
        value=run.delivery.value,
        key=run.delivery.key,
        properties={
            **run.headers,
            **_origin(run),
            message.ATTEMPT: str(run.request.retries + 1),
            message.DELAY: str(round(delay * 1000)),
            message.ETA: message.milliseconds(due),
            message.PUBLISHED_AT: _iso(run.first_published),
        },
        deliver_at=due,
    )


def dead_letter(run: Run, topic: str, death: Died, *, now: float) -> Publication:
    """The message as it is kept on `topic`, with the story of its end at the instant `now`."""
    error = death.error
    properties = {
        **message.without_retries(run.headers),
        **_origin(run),
        message.REASON: death.reason,
        message.EXCEPTION_TYPE: type(error).__qualname__,
        message.EXCEPTION_MESSAGE: text_of(error)[:LONGEST_TRACEBACK],
        message.TRACEBACK: traceback_of(error)[-LONGEST_TRACEBACK:],
        message.ATTEMPTS: str(run.request.retries + 1),
        message.WORKER: worker_name(),
        message.FAILED_AT: _iso(now),
        message.PUBLISHED_AT: _iso(run.first_published),
    }
    letter = Publication(topic, run.delivery.value, run.delivery.key, properties)
    if check_size(letter) is not None:  # the message itself matters more than the whole story
        properties[message.EXCEPTION_MESSAGE] = properties[message.EXCEPTION_MESSAGE][:SHORT_STORY]
        properties[message.TRACEBACK] = properties[message.TRACEBACK][-SHORT_STORY:]
    return letter if check_size(letter) is None else _cut(letter)


def worker_name() -> str:
    """Which process it is, on which host."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _cut(letter: Publication) -> Publication:
    """As much of a dead letter as can be kept: its sender had more room than a dead letter has.

    Other clients may send up to the broker's own limit, or above it in chunks. Delivered again without end it would
    serve nobody, so its story is kept, its own headers, and of its value the beginning.
    """
    properties = {
        name[:SHORT_STORY]: text[:SHORT_STORY] for name, text in letter.properties.items() if name in message.OURS
    }
    properties[message.CUT] = str(len(letter.value))
    key = letter.key if letter.key is None else letter.key[:SHORT_STORY]
    return Publication(letter.topic, letter.value[:CUT_VALUE], key, properties)


def _origin(run: Run) -> dict[str, str]:
    """Where the message first was, as the Java client says it; a copy of a copy keeps what the first copy said."""
    headers, subscription = run.headers, run.request.subscription
    # Go's client does not say whose copy it is; on a topic of the subscription's own it is this one's.
    unsaid = "" if run.delivery.topic == run.route.task.topics.work else subscription
    if headers.get(message.REAL_SUBSCRIPTION, unsaid) != subscription:
        headers = {}  # what another subscription says of its own: this one takes the message from where it is now
    origin = headers.get(message.ORIGIN_MESSAGE_ID) or headers.get(message.OLD_ORIGIN_MESSAGE_ID)
    return {
        message.REAL_TOPIC: headers.get(message.REAL_TOPIC) or run.delivery.topic,
        message.REAL_SUBSCRIPTION: subscription,
        message.ORIGIN_MESSAGE_ID: origin or run.delivery.message_id,
    }


def _iso(instant: float) -> str:
    return datetime.fromtimestamp(instant, timezone.utc).isoformat(timespec="milliseconds")
