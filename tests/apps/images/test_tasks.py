"""The images app as it runs: events in, events and blobs out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from uuid import uuid4

import pytest
from PIL import Image

from apps.demo.make_recording import TEXT
from apps.events import (
    ImageReady,
    MessageCreated,
    Transcribed,
    image_dead_letters,
    image_ready,
    message_created,
    transcribed,
)
from pulsartasks import Tail
from tests.apps.images.test_pictures import encoded, four_corners
from tests.apps.workers import PATIENCE, RunningWorker, running_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    with running_worker("images", tmp_path_factory.mktemp("images")) as running:
        yield running


@pytest.fixture
def results(worker: RunningWorker) -> Iterator[Tail[ImageReady]]:
    with image_ready.tail() as tail:
        yield tail


def sent(worker: RunningWorker, picture: bytes | None) -> MessageCreated:
    """A message as the chat sends it, its blob stored before."""
    message_id = uuid4().hex
    key = f"chat-1/{message_id}/picture"
    if picture is not None:
        worker.blobs.put(key, picture, "image/jpeg")
    return MessageCreated(message_id, "chat-1", picture=key if picture is not None else None, picture_type="image/jpeg")


def heard(text: str = "Good evening!", status: str = "ok") -> Transcribed:
    return Transcribed(uuid4().hex, "chat-1", status, text, duration=3.0)  # type: ignore[arg-type]


def check_stored(worker: RunningWorker, event: ImageReady) -> None:
    """What the event says of its blobs is true."""
    for rendition in event.renditions.values():
        blob = worker.blobs.get(rendition.key)
        picture = Image.open(io.BytesIO(blob.data))
        assert picture.size == (rendition.width, rendition.height)
        assert picture.get_format_mimetype() == blob.content_type == rendition.content_type


def test_a_picture_becomes_renditions(worker: RunningWorker, results: Tail[ImageReady]) -> None:
    message = sent(worker, encoded(four_corners(2000, 1000), "JPEG"))

    message_created.publish(message)
    event = results.receive(PATIENCE)

    assert event is not None
    assert (event.message_id, event.chat_id, event.kind) == (message.message_id, "chat-1", "picture")
    assert (event.status, event.reason) == ("ok", None)
    assert {name: (r.width, r.height) for name, r in event.renditions.items()} == {
        "thumb": (320, 160),
        "large": (1600, 800),
    }
    check_stored(worker, event)


def test_a_bad_picture_is_an_outcome_with_its_reason(worker: RunningWorker, results: Tail[ImageReady]) -> None:
    message = sent(worker, b"<svg onload='alert(1)'/>")

    message_created.publish(message)

    reason = "This file is not a picture we can show (JPEG, PNG, WebP, GIF)."
    assert results.receive(PATIENCE) == ImageReady(message.message_id, "chat-1", "picture", "failed", reason=reason)


def test_a_transcript_becomes_a_card(worker: RunningWorker, results: Tail[ImageReady]) -> None:
    transcript = heard(TEXT)

    transcribed.publish(transcript)
    event = results.receive(PATIENCE)

    assert event is not None
    assert (event.message_id, event.chat_id, event.kind) == (transcript.message_id, "chat-1", "card")
    assert (event.status, event.reason) == ("ok", None)
    assert list(event.renditions) == ["card"]
    check_stored(worker, event)


def test_where_there_is_nothing_to_draw_nothing_is_said(worker: RunningWorker, results: Tail[ImageReady]) -> None:
    message_created.publish(sent(worker, None))
    for nothing in (heard("", "no_speech"), heard("", "failed"), heard("  ")):
        transcribed.publish(nothing)
    last = heard()
    transcribed.publish(last)

    event = results.receive(PATIENCE)

    assert event is not None
    assert event.message_id == last.message_id
    assert results.receive(0.5) is None


def test_a_repeated_delivery_writes_the_same_again(worker: RunningWorker, results: Tail[ImageReady]) -> None:
    message, transcript = sent(worker, encoded(four_corners(), "JPEG")), heard()
    for _ in range(2):
        message_created.publish(message)
        transcribed.publish(transcript)

    found = [results.receive(PATIENCE) for _ in range(4)]

    events = {event.kind: event for event in found if event is not None}
    assert all(event == events[event.kind] for event in found if event is not None)
    assert [event.kind for event in found if event is not None].count("card") == 2
    for event in events.values():
        check_stored(worker, event)


def test_a_missing_picture_is_a_dead_letter(worker: RunningWorker) -> None:
    message = sent(worker, b"soon gone")
    assert message.picture is not None
    worker.blobs.delete(message.picture)

    with image_dead_letters.tail() as dead_letters:
        message_created.publish(message)

        assert dead_letters.receive(PATIENCE) == message
