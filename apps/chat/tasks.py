"""What the chat does with the findings of the other apps: each is written beside its message, once.

A finding may come twice, late, or for a message that is gone; `apps.chat.threads` says what each of these means. While
the database is away the findings wait for it, in order and without end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal, TypedDict

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from apps.chat import threads
from apps.chat.database import Database
from apps.chat.settings import Settings
from apps.events import (
    ImageReady,
    MessageCreated,
    Transcribed,
    TranscriptionStarted,
    app,
    card_dead_letters,
    image_dead_letters,
    image_ready,
    transcribe_dead_letters,
    transcribed,
    transcription_started,
)
from pulsartasks import DeadLetter, TaskContext

__all__ = ["app"]

log = structlog.get_logger(__name__)


class _Delivery(TypedDict):
    subscription: str
    mode: Literal["key_shared"]
    max_retries: None
    autoretry_for: tuple[type[Exception], ...]
    retry_backoff: bool
    retry_backoff_max: float
    ignore_result: bool


IN_ORDER: _Delivery = {
    "subscription": "chat",
    "mode": "key_shared",
    "max_retries": None,
    "autoretry_for": (OperationalError,),
    "retry_backoff": True,
    "retry_backoff_max": 30.0,
    "ignore_result": True,
}
"""Every finding of a chat after the other, however long the database is away."""


@app.resource
def database() -> Iterator[Database]:
    """The chat's database, open as long as the worker runs."""
    opened = Database(Settings.from_environ(os.environ).database_url)
    yield opened
    opened.close()


@app.task(topic=transcription_started, **IN_ORDER)
def show_transcribing(event: TranscriptionStarted, database: Database) -> None:
    """Tell whoever is waiting that it has begun."""
    _write(database, event.message_id, lambda session: threads.note_started(session, event))


@app.task(topic=transcribed, **IN_ORDER)
def show_transcript(event: Transcribed, database: Database) -> None:
    """Write what was heard, that nothing was, or why it failed."""
    _write(database, event.message_id, lambda session: threads.write_transcript(session, event))


@app.task(topic=image_ready, **IN_ORDER)
def show_image(event: ImageReady, database: Database) -> None:
    """Show the renditions of an attached picture, or a voice card."""
    _write(database, event.message_id, lambda session: threads.write_image(session, event))


@app.task(topic=transcribe_dead_letters, bind=True, **IN_ORDER)
def show_transcription_given_up(self: TaskContext, request: MessageCreated, database: Database) -> None:
    """Say in the thread that the transcribing workers gave up, and why."""
    reason = why(self.request.dead_letter)
    _write(database, request.message_id, lambda session: threads.write_failure(session, request, "audio", reason))


@app.task(topic=image_dead_letters, bind=True, **IN_ORDER)
def show_picture_given_up(self: TaskContext, request: MessageCreated, database: Database) -> None:
    """Say in the thread that the image workers gave up, and why."""
    reason = why(self.request.dead_letter)
    _write(database, request.message_id, lambda session: threads.write_failure(session, request, "picture", reason))


@app.task(topic=card_dead_letters, bind=True, **IN_ORDER)
def note_card_given_up(self: TaskContext, event: Transcribed) -> None:
    """A message without its voice card is still a message: its thread says nothing, the log does."""
    log.warning("card.given_up", message_id=event.message_id, reason=why(self.request.dead_letter))


def why(dead_letter: DeadLetter | None) -> str:
    """The end of a message in words for the person who sent it."""
    if dead_letter is None:
        return "it was given up"
    cause = dead_letter.exception_message or dead_letter.exception_type or dead_letter.reason
    times = f" after {dead_letter.attempts} attempts" if dead_letter.attempts > 1 else ""
    return f"given up{times} ({cause[:200]})"


def _write(database: Database, message_id: str, change: Callable[[Session], bool]) -> None:
    with database.writing() as session:
        changed = change(session)
    log.info("thread.changed" if changed else "finding.ignored", message_id=message_id)
