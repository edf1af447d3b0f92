"""What every view works with: the app's services and the person who is asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, cast

from flask import abort, current_app, g, redirect, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]

from apps.chat.database import Database
from apps.chat.live import Live
from apps.chat.models import Member, User
from apps.chat.settings import Settings
from apps.chat.views import membership
from pulsartasks.contrib.blobs import BlobStore

P = ParamSpec("P")
View = Callable[P, ResponseReturnValue]

csrf = CSRFProtect()
limiter = Limiter(get_remote_address, storage_uri="memory://")


@dataclass(frozen=True)
class Services:
    """One of each per web process."""

    settings: Settings
    database: Database
    blobs: BlobStore
    live: Live


def services() -> Services:
    return cast(Services, current_app.extensions["babblebox"])


def signed_in() -> User | None:
    """Who is asking, if we know."""
    if "user" not in g:
        user_id = session.get("user_id")
        with services().database.reading() as db:
            g.user = db.get(User, user_id) if user_id else None
    return cast("User | None", g.user)


def me() -> User:
    """Who is asking, in a view that asked for it with `sign_in_required`."""
    user = signed_in()
    assert user is not None
    return user


def wants_json() -> bool:
    """Whether a script is asking, which shows errors in its own way."""
    accepted = request.accept_mimetypes
    return accepted["application/json"] > accepted["text/html"]


def sign_in_required(view: View[P]) -> View[P]:
    """Send strangers to the log-in page and from there back to where they wanted to go."""

    @wraps(view)
    def checked(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
        if signed_in() is not None:
            return view(*args, **kwargs)
        if wants_json() or request.method != "GET":
            abort(401)
        return redirect(url_for("auth.log_in", next=request.full_path.removesuffix("?")))

    return checked


def my_membership(chat_id: str) -> Member:
    """The asking person's membership; to everybody else the chat does not exist."""
    with services().database.reading() as db:
        member = membership(db, chat_id, me().id)
    return member or abort(404)
