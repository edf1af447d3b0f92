"""What happens in a thread: messages are sent, and the workers' findings are written beside them.

Every change runs in one transaction that first locks the chat's row. So a chat's changes happen one after another, its
versions are committed in their order, and nobody who reads "everything after version 7" can miss a change that was
begun before 7 and committed after it. Whom a change concerns is told through the outbox, by the same transaction.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.orm import Session

from apps.chat.database import Database
from apps.chat.models import Chat, Member, Message, User, now, outbox
from apps.events import (
    ImageReady,
    MessageCreated,
    ThreadChanged,
    Transcribed,
    TranscriptionStarted,
    message_created,
    thread_changed,
)
from pulsartasks.contrib.blobs import BlobStore

Part = Literal["audio", "picture"]


@dataclass(frozen=True)
class Upload:
    """A file whose kind was seen in its bytes."""

    data: bytes
    content_type: str
    duration: float | None = None
    """Seconds, if it is a recording."""


@dataclass(frozen=True)
class Draft:
    """A message on its way; at least one of `audio` and `picture` is there."""

    client_id: str
    """Whatever the sender's browser called it: the same again is the same message."""
    audio: Upload | None = None
    picture: Upload | None = None


def create_chat(session: Session, owner: User, name: str) -> Chat:
    """A new chat with `owner` in it."""
    chat = Chat(name=name)
    session.add(chat)
    session.flush()
    add_member(session, chat.id, owner.id)
    return chat


def add_member(session: Session, chat_id: str, user_id: str) -> bool:
    """Let someone in; False if they were in already."""
    chat = _lock(session, chat_id)
    if chat is None or session.get(Member, (chat_id, user_id)) is not None:
        return False
    session.add(Member(chat_id=chat_id, user_id=user_id, read_number=chat.version))
    chat.changed_at = now()
    session.flush()
    _changed(session, chat)
    return True


def send(database: Database, blobs: BlobStore, chat_id: str, sender_id: str, draft: Draft) -> str:
    """Send a message and return its id. Sending the same draft again changes nothing and returns the same id.

    The blobs come first: a row always has its files, and a file whose row never came is overwritten by the next try.
    """
    message_id = uuid.uuid5(uuid.UUID(sender_id), f"{chat_id}/{draft.client_id}").hex
    with database.reading() as session:
        if session.get(Message, message_id) is not None:
            return message_id
    message = Message(id=message_id, chat_id=chat_id, sender_id=sender_id)
    if draft.audio is not None:
        message.audio, message.audio_type = f"messages/{message_id}/audio", draft.audio.content_type
        message.duration, message.transcript_state = draft.audio.duration, "waiting"
        blobs.put(message.audio, draft.audio.data, content_type=draft.audio.content_type)
    if draft.picture is not None:
        message.picture, message.picture_type = f"messages/{message_id}/picture", draft.picture.content_type
        message.picture_state = "waiting"
        blobs.put(message.picture, draft.picture.data, content_type=draft.picture.content_type)
    with database.writing() as session:
        chat = _lock(session, chat_id)
        if chat is not None and session.get(Message, message_id) is None:
            _insert(session, chat, message)
    return message_id


def _insert(session: Session, chat: Chat, message: Message) -> None:
    chat.changed_at = now()
    message.number = message.version = _changed(session, chat)
    session.add(message)
    outbox.add(session, message_created.s(_request_for(message, {"audio", "picture"})))


def try_again(session: Session, chat_id: str, message_id: str) -> bool:
    """Ask the workers once more for what failed; False if nothing did."""
    chat, message = _lock_message(session, chat_id, message_id)
    if chat is None or message is None:
        return False
    failed: set[Part] = set()
    if message.transcript_state == "failed":
        message.transcript_state, message.transcript_reason = "waiting", ""
        failed.add("audio")
    if message.picture_state == "failed":
        message.picture_state, message.picture_reason = "waiting", ""
        failed.add("picture")
    if not failed:
        return False
    message.version = _changed(session, chat)
    outbox.add(session, message_created.s(_request_for(message, failed)))
    return True


def mark_read(session: Session, member: Member, number: int) -> None:
    """Remember how far a member has seen; it never goes back."""
    session.execute(
        sa.update(Member)
        .where(Member.chat_id == member.chat_id, Member.user_id == member.user_id, Member.read_number < number)
        .values(read_number=number)
    )


def note_started(session: Session, event: TranscriptionStarted) -> bool:
    """Show that a worker is at it; late news change nothing."""
    chat, message = _lock_message(session, event.chat_id, event.message_id)
    if chat is None or message is None or message.transcript_state != "waiting":
        return False
    message.transcript_state = "transcribing"
    message.version = _changed(session, chat)
    return True


def write_transcript(session: Session, event: Transcribed) -> bool:
    """Write what was heard; False if the message is gone or already has its transcript.

    A transcript is final: the same recording transcribed twice (its worker died in between) does not change what
    people have read. A failure is not final: whatever comes later takes its place.
    """
    chat, message = _lock_message(session, event.chat_id, event.message_id)
    if chat is None or message is None or message.transcript_state in ("none", "ok", "no_speech"):
        return False
    if (message.transcript_state, message.transcript_reason) == (event.status, event.reason):
        return False
    message.transcript_state = event.status
    message.transcript = event.text
    message.transcript_reason = event.reason or ""
    message.language = event.language
    if event.duration is not None:
        message.duration = event.duration
    message.version = _changed(session, chat)
    return True


def write_image(session: Session, event: ImageReady) -> bool:
    """Show renditions or a voice card; False if the message is gone or has them already."""
    chat, message = _lock_message(session, event.chat_id, event.message_id)
    if chat is None or message is None:
        return False
    renditions = msgspec.to_builtins(event.renditions)
    if event.kind == "card":
        if event.status == "failed" or message.card == renditions:
            return False
        message.card = renditions
    else:
        if message.picture_state in ("none", "ok"):
            return False
        message.picture_state, message.renditions = event.status, renditions
        message.picture_reason = event.reason or ""
    message.version = _changed(session, chat)
    return True


def write_failure(session: Session, request: MessageCreated, part: Part, reason: str) -> bool:
    """Show that the workers gave up on a part of a message; False if there is nothing to show."""
    if part == "audio":
        failed = Transcribed(request.message_id, request.chat_id, "failed", reason=reason)
        return request.audio is not None and write_transcript(session, failed)
    broken = ImageReady(request.message_id, request.chat_id, "picture", "failed", reason=reason)
    return request.picture is not None and write_image(session, broken)


def _request_for(message: Message, parts: set[Part]) -> MessageCreated:
    audio, picture = "audio" in parts, "picture" in parts
    return MessageCreated(
        message_id=message.id,
        chat_id=message.chat_id,
        audio=message.audio if audio else None,
        audio_type=message.audio_type if audio else None,
        picture=message.picture if picture else None,
        picture_type=message.picture_type if picture else None,
    )


def _lock(session: Session, chat_id: str) -> Chat | None:
    return session.get(Chat, chat_id, with_for_update=True, populate_existing=True)


def _lock_message(session: Session, chat_id: str, message_id: str) -> tuple[Chat | None, Message | None]:
    chat = _lock(session, chat_id)
    message = session.get(Message, message_id, populate_existing=True)
    return (chat, message) if message is not None and message.chat_id == chat_id else (chat, None)


def _changed(session: Session, chat: Chat) -> int:
    """Count the change of a locked chat and tell whoever may be looking at it."""
    chat.version += 1
    members = session.scalars(sa.select(Member.user_id).where(Member.chat_id == chat.id))
    outbox.add(session, thread_changed.s(ThreadChanged(chat.id, chat.version, tuple(members))))
    return chat.version
