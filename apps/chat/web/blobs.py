"""Recordings and pictures, for members only. Addresses name messages; which blob that is stands in the database."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from flask import Blueprint, Response, abort, send_file
from flask.typing import ResponseReturnValue

from apps.chat.models import Message
from apps.chat.views import message_for
from apps.chat.web.context import me, services, sign_in_required
from pulsartasks.contrib.blobs import BlobNotFoundError

blueprint = Blueprint("blobs", __name__)

_ONE_DAY = 86400


@blueprint.get("/messages/<message_id>/audio")
@sign_in_required
def audio(message_id: str) -> ResponseReturnValue:
    message = _message(message_id)
    return _blob(message.audio, message.audio_type, "audio/")


@blueprint.get("/messages/<message_id>/picture/<name>")
@sign_in_required
def picture(message_id: str, name: str) -> ResponseReturnValue:
    return _rendition(_message(message_id).renditions, name)


@blueprint.get("/messages/<message_id>/card/<name>")
@sign_in_required
def card(message_id: str, name: str) -> ResponseReturnValue:
    return _rendition(_message(message_id).card, name)


def _message(message_id: str) -> Message:
    with services().database.reading() as db:
        return message_for(db, message_id, me().id) or abort(404)


def _rendition(renditions: dict[str, Any], name: str) -> Response:
    rendition = renditions.get(name) or abort(404)
    return _blob(rendition["key"], rendition["content_type"], "image/")


def _blob(key: str | None, content_type: str | None, family: str) -> Response:
    """A blob with the type that was found out about it, cut into ranges if the player asks for them."""
    if key is None or content_type is None or not content_type.startswith(family):
        abort(404)
    try:
        blob = services().blobs.get(key)
    except BlobNotFoundError:
        abort(404)
    response = send_file(BytesIO(blob.data), mimetype=content_type, conditional=True)
    response.headers["Cache-Control"] = f"private, max-age={_ONE_DAY}"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return response
