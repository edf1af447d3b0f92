"""Sending messages, and asking again for what failed."""

from __future__ import annotations

import re

import structlog
from flask import Blueprint, Response, abort, jsonify, render_template, request
from flask.typing import ResponseReturnValue

from apps.chat import media, threads
from apps.chat.models import Message
from apps.chat.views import message_for, page_of
from apps.chat.web.context import me, my_membership, services, sign_in_required

blueprint = Blueprint("messages", __name__)
log = structlog.get_logger(__name__)

_CLIENT_ID = re.compile(r"[\w-]{8,64}")


@blueprint.post("/chats/<chat_id>/messages")
@sign_in_required
def send(chat_id: str) -> ResponseReturnValue:
    """Take a recording, a picture or both. The same `client_id` again is the same message, however often it is sent."""
    my_membership(chat_id)
    draft = _draft()
    message_id = threads.send(services().database, services().blobs, chat_id, me().id, draft)
    log.info("message.sent", chat_id=chat_id, message_id=message_id)
    return _bubble(_my_message(message_id)), 201


@blueprint.get("/chats/<chat_id>/messages")
@sign_in_required
def older(chat_id: str) -> ResponseReturnValue:
    """The page of bubbles before a message's number."""
    my_membership(chat_id)
    with services().database.reading() as db:
        messages, more = page_of(db, chat_id, before=request.args.get("before", type=int))
    return render_template("_older.html", chat_id=chat_id, messages=messages, older=more)


@blueprint.post("/messages/<message_id>/try-again")
@sign_in_required
def try_again(message_id: str) -> ResponseReturnValue:
    message = _my_message(message_id)
    with services().database.writing() as db:
        threads.try_again(db, message.chat_id, message.id)
    return _bubble(_my_message(message_id))


def _draft() -> threads.Draft:
    client_id = request.form.get("client_id", "")
    if _CLIENT_ID.fullmatch(client_id) is None:
        abort(400)
    audio, picture = request.files.get("audio"), request.files.get("picture")
    if audio is None and picture is None:
        raise media.RefusedUploadError("There is nothing to send. Record something or choose a picture.")
    return threads.Draft(
        client_id=client_id,
        audio=media.recording(audio.read()) if audio else None,
        picture=media.picture(picture.read()) if picture else None,
    )


def _my_message(message_id: str) -> Message:
    with services().database.reading() as db:
        return message_for(db, message_id, me().id) or abort(404)


def _bubble(message: Message) -> Response:
    return jsonify(id=message.id, version=message.version, html=render_template("_bubble.html", message=message))
