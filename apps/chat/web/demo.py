"""Coming in as one of the demo's people without a password. Registered in demo mode only."""

from __future__ import annotations

from flask import Blueprint, abort, redirect, url_for
from flask.typing import ResponseReturnValue

from apps.chat.views import user_named
from apps.chat.web.auth import enter
from apps.chat.web.context import services

blueprint = Blueprint("demo", __name__)


@blueprint.post("/demo/<name>")
def come_in(name: str) -> ResponseReturnValue:
    with services().database.reading() as db:
        user = user_named(db, name)
    if user is None or not user.demo:
        abort(404)
    enter(user)
    return redirect(url_for("chats.index"))
