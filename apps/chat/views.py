"""What is read for the screens: the chat list of a person, the messages of a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload, selectinload

from apps.chat.models import Chat, Member, Message, User

PAGE = 40
"""Messages shown at once; older ones on request."""


@dataclass(frozen=True)
class ChatEntry:
    """One line of the chat list."""

    id: str
    title: str
    preview: str
    at: datetime
    unread: int


def membership(session: Session, chat_id: str, user_id: str) -> Member | None:
    """The member and the chat, or None: for whoever is not in it, a chat does not exist."""
    return session.get(
        Member, (chat_id, user_id), options=[joinedload(Member.chat).selectinload(Chat.members).joinedload(Member.user)]
    )


def message_for(session: Session, message_id: str, user_id: str) -> Message | None:
    """A message, if it is in one of the user's chats."""
    return session.scalar(
        sa.select(Message)
        .join(Member, sa.and_(Member.chat_id == Message.chat_id, Member.user_id == user_id))
        .where(Message.id == message_id)
        .options(joinedload(Message.sender))
    )


def title_for(chat: Chat, user_id: str) -> str:
    """The chat's name, or the names of the others in it."""
    if chat.name:
        return chat.name
    others = [member.user.name for member in chat.members if member.user_id != user_id]
    return ", ".join(others) or "Just you"


def chat_list(session: Session, user_id: str) -> list[ChatEntry]:
    """The user's chats, the latest first."""
    mine = sa.select(Member).where(Member.user_id == user_id)
    members = session.scalars(
        mine.options(joinedload(Member.chat).selectinload(Chat.members).joinedload(Member.user))
    ).all()
    last = _last_messages(session, [member.chat_id for member in members])
    unread = _unread_counts(session, user_id)
    entries = [
        ChatEntry(
            id=member.chat_id,
            title=title_for(member.chat, user_id),
            preview=preview(last.get(member.chat_id), user_id),
            at=member.chat.changed_at,
            unread=unread.get(member.chat_id, 0),
        )
        for member in members
    ]
    return sorted(entries, key=lambda entry: entry.at, reverse=True)


def preview(message: Message | None, user_id: str) -> str:
    """A message in one line."""
    if message is None:
        return "Nothing said yet"
    who = "You" if message.sender_id == user_id else message.sender.name
    if message.transcript_state == "ok":
        return f"{who}: {message.transcript[:120]}"
    return f"{who}: {'Voice message' if message.audio else 'Picture'}"


def page_of(session: Session, chat_id: str, before: int | None = None) -> tuple[Sequence[Message], bool]:
    """The newest messages of a thread, or those before a number, in order; and whether there are older ones."""
    query = sa.select(Message).where(Message.chat_id == chat_id)
    if before is not None:
        query = query.where(Message.number < before)
    query = query.order_by(Message.number.desc()).limit(PAGE + 1).options(joinedload(Message.sender))
    found = session.scalars(query).all()
    return found[:PAGE][::-1], len(found) > PAGE


def changed_since(session: Session, chat_id: str, version: int) -> Sequence[Message]:
    """Messages of a thread that are new or different since `version`, in the order of their changes."""
    return session.scalars(
        sa.select(Message)
        .where(Message.chat_id == chat_id, Message.version > version)
        .order_by(Message.version)
        .options(joinedload(Message.sender))
    ).all()


def user_named(session: Session, name: str) -> User | None:
    return session.scalar(sa.select(User).where(User.name_key == name.strip().casefold()))


def chat_invited_to(session: Session, token: str) -> Chat | None:
    """The chat of an invite link."""
    query = sa.select(Chat).where(Chat.invite_token == token)
    return session.scalar(query.options(selectinload(Chat.members).joinedload(Member.user)))


def _last_messages(session: Session, chat_ids: Sequence[str]) -> dict[str, Message]:
    newest = (
        sa.select(Message.chat_id, sa.func.max(Message.number).label("number"))
        .where(Message.chat_id.in_(chat_ids))
        .group_by(Message.chat_id)
        .subquery()
    )
    found = session.scalars(
        sa.select(Message)
        .join(newest, sa.and_(Message.chat_id == newest.c.chat_id, Message.number == newest.c.number))
        .options(joinedload(Message.sender))
    )
    return {message.chat_id: message for message in found}


def _unread_counts(session: Session, user_id: str) -> dict[str, int]:
    rows = session.execute(
        sa.select(Message.chat_id, sa.func.count())
        .join(Member, sa.and_(Member.chat_id == Message.chat_id, Member.user_id == user_id))
        .where(Message.number > Member.read_number, Message.sender_id != user_id)
        .group_by(Message.chat_id)
    )
    return dict(rows.all())
