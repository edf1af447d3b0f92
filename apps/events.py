"""What BabbleBox's apps say to each other: every topic and every payload, once.

`apps.transcribe` and `apps.images` know neither the chat's database nor each other. Blobs and these topics are all they
share, so a field that is added here is the whole of the interface between them.
"""

from typing import Literal

import msgspec

from pulsartasks import PulsarTasks


class MessageCreated(msgspec.Struct, frozen=True):
    """A message was sent, or its sender asked to try again; at least one of `audio` and `picture` is there."""

    message_id: str
    chat_id: str
    audio: str | None = None
    """Blob key of the recording as the browser made it."""
    audio_type: str | None = None
    picture: str | None = None
    """Blob key of the picture as it was uploaded: unsafe to show, its renditions are for that."""
    picture_type: str | None = None


class Transcribed(msgspec.Struct, frozen=True):
    """The recording of a message became text, or turned out to hold none."""

    message_id: str
    chat_id: str
    status: Literal["ok", "no_speech", "failed"]
    text: str = ""
    language: str | None = None
    duration: float | None = None
    """Seconds, counted from the decoded samples: what a container's header says about itself is not believed."""
    reason: str | None = None
    """Why it failed, in words for the person who sent it."""


class Rendition(msgspec.Struct, frozen=True):
    """One picture that is safe to show."""

    key: str
    content_type: str
    width: int
    height: int


class ImageReady(msgspec.Struct, frozen=True):
    """Something to look at was made: renditions of an attached picture, or the voice card of a transcript."""

    message_id: str
    chat_id: str
    kind: Literal["picture", "card"]
    status: Literal["ok", "failed"]
    renditions: dict[str, Rendition] = {}
    """By name, such as `thumb` and `large`."""
    reason: str | None = None


class TranscriptionStarted(msgspec.Struct, frozen=True):
    """A worker has begun with the recording of a message: news for whoever is waiting, and nothing depends on it."""

    message_id: str
    chat_id: str


class ThreadChanged(msgspec.Struct, frozen=True):
    """A thread has something new at `version`; whoever shows it asks the database."""

    chat_id: str
    version: int
    members: tuple[str, ...] = ()
    """Who may be looking at it."""


app = PulsarTasks("babblebox")

message_created = app.topic(
    "babblebox.message-created",
    schema=MessageCreated,
    key=lambda event: event.chat_id,
    subscriptions=("transcribe", "images"),
)
transcription_started = app.topic(
    "babblebox.transcription-started",
    schema=TranscriptionStarted,
    key=lambda event: event.chat_id,
    subscriptions=("chat",),
)
transcribed = app.topic(
    "babblebox.transcribed",
    schema=Transcribed,
    key=lambda event: event.chat_id,
    subscriptions=("images", "chat"),
)
image_ready = app.topic(
    "babblebox.image-ready",
    schema=ImageReady,
    key=lambda event: event.chat_id,
    subscriptions=("chat",),
)
thread_changed = app.topic("babblebox.thread-changed", schema=ThreadChanged, key=lambda event: event.chat_id)

transcribe_dead_letters = message_created.dead_letters("transcribe", subscriptions=("chat",))
image_dead_letters = message_created.dead_letters("images", subscriptions=("chat",))
card_dead_letters = transcribed.dead_letters("images", subscriptions=("chat",))
