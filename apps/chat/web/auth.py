"""Signing up, logging in and out."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from flask import Blueprint, flash, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import IntegrityError

from apps.chat import threads
from apps.chat.models import Chat, User
from apps.chat.views import chat_invited_to, user_named
from apps.chat.web.context import limiter, services, signed_in

blueprint = Blueprint("auth", __name__)
hasher = PasswordHasher()

_NAME = re.compile(r"\w[\w.-]{1,31}")
_SHORTEST_PASSWORD = 8
_LONGEST_PASSWORD = 256
_NOBODY = hasher.hash("nobody's password")
"""Checked when there is no such user, so that the time of the answer does not tell whether a name exists."""

_FAILURES = "10 per minute; 60 per hour"
"""Wrong passwords for one name from one address."""


@blueprint.before_app_request
def renew() -> None:
    """Count the days that a session lasts from the last one on which it was used.

    Not from every answer: one that was on its way while the same browser logged out would log it in again.
    """
    if "user_id" in session and session.get("renewed") != _today():
        session["renewed"] = _today()


@blueprint.get("/")
def front_door() -> ResponseReturnValue:
    return redirect(url_for("chats.index" if signed_in() else "auth.log_in"))


@blueprint.get("/log-in")
def log_in() -> ResponseReturnValue:
    return _form("log_in.html")


@blueprint.post("/log-in")
@limiter.limit(
    _FAILURES,
    key_func=lambda: f"{request.remote_addr} {request.form.get('name', '').strip().casefold()}",
    deduct_when=lambda response: response.status_code == 422,
)
def log_in_submit() -> ResponseReturnValue:
    with services().database.reading() as db:
        user = user_named(db, request.form.get("name", ""))
    try:
        hasher.verify(user.password if user else _NOBODY, request.form.get("password", "")[:_LONGEST_PASSWORD])
    except VerificationError:
        user = None
    if user is None:
        return _form("log_in.html", "That name and password do not belong together. Please try again."), 422
    return _welcome(user)


@blueprint.get("/sign-up")
def sign_up() -> ResponseReturnValue:
    return _form("sign_up.html")


@blueprint.post("/sign-up")
def sign_up_submit() -> ResponseReturnValue:
    name, password = request.form.get("name", "").strip(), request.form.get("password", "")
    error = _objection(name, password)
    if error:
        return _form("sign_up.html", error), 422
    user = User(name=name, name_key=name.casefold(), password=hasher.hash(password))
    try:
        with services().database.writing() as db:
            db.add(user)
    except IntegrityError:
        return _form("sign_up.html", f"Somebody is called {name} already. Please choose another name."), 422
    return _welcome(user)


@blueprint.post("/log-out")
def log_out() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("auth.log_in"))


def enter(user: User) -> None:
    """Begin a session of its own for this user."""
    session.clear()
    session.permanent = True
    session["user_id"] = user.id
    session["renewed"] = _today()


def local_address(address: str | None) -> str | None:
    """The address, if it leads to this site and nowhere else.

    >>> local_address("/chats/1"), local_address("//evil.example"), local_address("https://evil.example")
    ('/chats/1', None, None)
    """
    if address and address.startswith("/") and not re.match(r"/[/\\]", address) and address.isprintable():
        return address
    return None


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _objection(name: str, password: str) -> str | None:
    if _NAME.fullmatch(name) is None:
        return "A name has 2 to 32 letters, digits, dots, dashes or underscores."
    if not _SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
        return f"A password has at least {_SHORTEST_PASSWORD} and at most {_LONGEST_PASSWORD} characters."
    return None


def _form(template: str, error: str | None = None) -> str:
    return render_template(
        template,
        error=error,
        name=request.form.get("name", ""),
        next=local_address(request.values.get("next")),
        invited_to=_invited_to(),
    )


def _invited_to() -> Chat | None:
    token = session.get("invite")
    if token is None:
        return None
    with services().database.reading() as db:
        return chat_invited_to(db, token)


def _welcome(user: User) -> ResponseReturnValue:
    """Let the user in: to the chat whose invite link they followed, to where they wanted to go, or to their chats."""
    chat = _invited_to()
    enter(user)
    if chat is None:
        return redirect(local_address(request.values.get("next")) or url_for("chats.index"))
    with services().database.writing() as db:
        threads.add_member(db, chat.id, user.id)
    flash("You are in. Say hello!")
    return redirect(url_for("chats.show", chat_id=chat.id))
