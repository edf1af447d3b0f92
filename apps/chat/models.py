"""The chat's tables."""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from pulsartasks.contrib.sqlalchemy import Outbox

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware instant in UTC, also in SQLite, which stores no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.astimezone(timezone.utc) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: sa.JSON}  # noqa: RUF012


def new_id() -> str:
    return uuid.uuid4().hex


def now() -> datetime:
    return datetime.now(timezone.utc)


class User(Base):
    """A person who can sign in."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(sa.String(32))
    name_key: Mapped[str] = mapped_column(sa.String(64), unique=True)
    """The name without its case: Ada and ada are one person."""
    password: Mapped[str] = mapped_column(sa.String(255))
    """An argon2 hash."""
    demo: Mapped[bool] = mapped_column(default=False)
    """Whether demo mode may let anybody in as this person."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class Chat(Base):
    """A thread, its members, and how often it changed."""

    __tablename__ = "chats"

    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(sa.String(80), default="")
    """Empty: it is called after the other members."""
    invite_token: Mapped[str] = mapped_column(sa.String(64), unique=True, default=lambda: secrets.token_urlsafe(16))
    version: Mapped[int] = mapped_column(default=0)
    """Counts every change. Counted under the row's lock, so versions are committed in their order."""
    changed_at: Mapped[datetime] = mapped_column(default=now)
    """When the last message or member came; the chat list's order."""

    members: Mapped[list[Member]] = relationship(back_populates="chat", order_by="Member.joined_at")


class Member(Base):
    """A person in a chat."""

    __tablename__ = "members"

    chat_id: Mapped[str] = mapped_column(sa.ForeignKey("chats.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    joined_at: Mapped[datetime] = mapped_column(default=now)
    read_number: Mapped[int] = mapped_column(default=0)
    """The number of the last message that this member has seen."""

    chat: Mapped[Chat] = relationship(back_populates="members")
    user: Mapped[User] = relationship()


class Message(Base):
    """What was sent, and what the workers made of it so far: one row, so there is one transcript and never two."""

    __tablename__ = "messages"
    __table_args__ = (
        sa.UniqueConstraint("chat_id", "number"),
        sa.Index("ix_messages_chat_version", "chat_id", "version"),
    )

    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    """Follows from the sender and an id of the browser's making, so that sending again never makes a second message."""
    chat_id: Mapped[str] = mapped_column(sa.ForeignKey("chats.id", ondelete="CASCADE"))
    sender_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id"))
    number: Mapped[int]
    """The chat's version when it was sent: its place in the thread, for ever."""
    version: Mapped[int]
    """The chat's version when it last changed: what a reader who has seen less must be shown."""
    sent_at: Mapped[datetime] = mapped_column(default=now)

    audio: Mapped[str | None] = mapped_column(sa.String(255))
    audio_type: Mapped[str | None] = mapped_column(sa.String(80))
    duration: Mapped[float | None] = mapped_column(sa.Double)
    """Seconds, counted from decoded samples."""
    transcript_state: Mapped[str] = mapped_column(sa.String(16), default="none")
    """none | waiting | transcribing | ok | no_speech | failed"""
    transcript: Mapped[str] = mapped_column(sa.Text, default="")
    transcript_reason: Mapped[str] = mapped_column(sa.Text, default="")
    language: Mapped[str | None] = mapped_column(sa.String(16))

    picture: Mapped[str | None] = mapped_column(sa.String(255))
    picture_type: Mapped[str | None] = mapped_column(sa.String(80))
    picture_state: Mapped[str] = mapped_column(sa.String(16), default="none")
    """none | waiting | ok | failed"""
    picture_reason: Mapped[str] = mapped_column(sa.Text, default="")
    renditions: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Of the attached picture, by name: key, content_type, width, height."""
    card: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Renditions of the voice card, as above; empty until it is drawn."""

    sender: Mapped[User] = relationship()
    chat: Mapped[Chat] = relationship()


outbox = Outbox(Base.metadata)
"""What a transaction has to say to the workers, stored beside what it changed."""
