"""Errors, told to a person on a page and to a script as JSON."""

from __future__ import annotations

import structlog
from flask import Flask, jsonify, render_template
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError  # type: ignore[import-untyped]
from werkzeug.exceptions import HTTPException

from apps.chat.media import RefusedUploadError
from apps.chat.settings import MEGABYTE
from apps.chat.web.context import services, wants_json
from pulsartasks.contrib.blobs import BlobStoreError

log = structlog.get_logger(__name__)

_WORDS = {
    401: ("Please log in", "You are not logged in any more. Log in in another tab, then send it again."),
    403: ("Not allowed", "You are not allowed to do this."),
    404: ("Not here", "There is nothing here, or it belongs to somebody else."),
    405: ("Not like this", "This address cannot be used in this way."),
    429: ("Slow down", "Too many attempts. Please wait a minute and try again."),
    500: ("Something broke", "That was our fault, not yours. Please try again in a moment."),
}


def register_errors(app: Flask) -> None:
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(CSRFError, _stale_page)
    app.register_error_handler(RefusedUploadError, _refused)
    app.register_error_handler(BlobStoreError, _no_storage)


def problem(status: int, title: str, text: str, code: str = "") -> ResponseReturnValue:
    """An error response with a sentence that tells what to do."""
    if wants_json():
        return jsonify(error=text, code=code), status
    return render_template("problem.html", title=title, text=text), status


def _http_error(error: HTTPException) -> ResponseReturnValue:
    status = error.code or 500
    if status < 400:
        return error
    if status == 413:
        limit = services().settings.upload_limit // MEGABYTE
        return problem(413, "Too big", f"This is more than {limit} MB, which is the most that one message may hold.")
    title, text = _WORDS.get(status, (error.name, error.description or error.name))
    return problem(status, title, text)


def _stale_page(_error: CSRFError) -> ResponseReturnValue:
    return problem(400, "This page is out of date", "Please reload the page and try again.", code="stale-page")


def _no_storage(error: BlobStoreError) -> ResponseReturnValue:
    log.error("storage.failed", error=str(error))
    return problem(503, "The storage is away", "The storage cannot be reached. Nothing is lost: try again in a moment.")


def _refused(error: RefusedUploadError) -> ResponseReturnValue:
    return problem(422, "This cannot be sent", str(error))
