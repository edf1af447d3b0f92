"""The live stream of one open page, as server-sent events.

Three events: `bubble` (a message of the thread that is new or different; its id is the version of the chat), `people`
(the head of the thread) and `chats` (the chat list). A browser that comes back sends the last id it has seen and gets
all that changed since. No database connection is held while nothing happens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from flask import Blueprint, Response, abort, render_template, request, stream_with_context
from flask.typing import ResponseReturnValue
from sqlalchemy.orm import Session

from apps.chat.live import Listener
from apps.chat.views import changed_since, chat_list, membership, title_for
from apps.chat.web.context import limiter, me, my_membership, services, sign_in_required

blueprint = Blueprint("stream", __name__)

RETRY_MILLISECONDS = 1500


@blueprint.get("/events")
@limiter.exempt
@sign_in_required
def events() -> ResponseReturnValue:
    """Everything that changes for this person; with `chat`, also in that thread since the version `since`."""
    chat_id = request.args.get("chat")
    if chat_id is not None:
        my_membership(chat_id)
    since = request.headers.get("Last-Event-ID", request.args.get("since", "0"), type=str)
    if not since.isdecimal():
        abort(400)
    page = _Page(me().id, chat_id, int(since))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(stream_with_context(_follow(page)), mimetype="text/event-stream", headers=headers)


class _Page:
    """What one open page has been told so far."""

    def __init__(self, user_id: str, chat_id: str | None, version: int) -> None:
        self.user_id = user_id
        self.chat_id = chat_id
        self.version = version
        self._told: dict[str, str] = {}

    def news(self) -> Iterator[str]:
        """Everything that is new for it, read in one short transaction."""
        with services().database.reading() as db:
            found = [*self._thread_news(db), *self._list_news(db)]
        yield from found

    def _thread_news(self, db: Session) -> Iterator[str]:
        if self.chat_id is None:
            return
        member = membership(db, self.chat_id, self.user_id)
        if member is None or member.chat.version == self.version:
            return
        # The version was read before the messages: whatever is committed in between has a higher one and comes again.
        for message in changed_since(db, self.chat_id, self.version):
            html = render_template("_bubble.html", message=message)
            yield _event("bubble", {"id": message.id, "version": message.version, "html": html}, message.version)
            self.version = message.version
        self.version = max(self.version, member.chat.version)
        head = render_template("_people.html", chat=member.chat, title=title_for(member.chat, self.user_id))
        yield from self._if_different("people", head)

    def _list_news(self, db: Session) -> Iterator[str]:
        chats = chat_list(db, self.user_id)
        yield from self._if_different("chats", render_template("_chat_list.html", chats=chats, active=self.chat_id))

    def _if_different(self, name: str, html: str) -> Iterator[str]:
        if self._told.get(name) != html:
            self._told[name] = html
            yield _event(name, {"html": html}, self.version)


def _follow(page: _Page) -> Iterator[str]:
    settings = services().settings
    end = time.monotonic() + settings.stream_lifetime
    with services().live.listening(page.user_id) as listener:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        while not listener.dismissed and time.monotonic() < end:
            yield from page.news()
            yield from _wait(listener, settings.heartbeat)


def _wait(listener: Listener, heartbeat: float) -> Iterator[str]:
    if not listener.wait(heartbeat):
        yield ": still here\n\n"  # finds out whether the browser is, too


def _event(name: str, data: dict[str, object], version: int) -> str:
    return f"event: {name}\nid: {version}\ndata: {json.dumps(data)}\n\n"
