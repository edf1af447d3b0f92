"""The chat list, a chat's thread, and who is in it."""

from __future__ import annotations

from flask import Blueprint, abort, flash, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from apps.chat import threads
from apps.chat.models import Chat
from apps.chat.views import chat_invited_to, chat_list, page_of, title_for, user_named
from apps.chat.web.context import me, my_membership, services, sign_in_required, signed_in

blueprint = Blueprint("chats", __name__)

_LONGEST_NAME = 80


@blueprint.get("/chats")
@sign_in_required
def index() -> ResponseReturnValue:
    with services().database.reading() as db:
        return render_template("chats.html", chats=chat_list(db, me().id), active=None)


@blueprint.get("/chats/new")
@sign_in_required
def new() -> ResponseReturnValue:
    return _new_form()


@blueprint.post("/chats")
@sign_in_required
def create() -> ResponseReturnValue:
    name, friend = request.form.get("name", "").strip(), request.form.get("friend", "").strip()
    if len(name) > _LONGEST_NAME:
        return _new_form(f"A chat's name has at most {_LONGEST_NAME} characters."), 422
    with services().database.writing() as db:
        user = user_named(db, friend) if friend else None
        if friend and user is None:
            return _new_form(f"Nobody here is called {friend}. Leave it empty and send them the invite link."), 422
        chat = threads.create_chat(db, me(), name)
        if user is not None:
            threads.add_member(db, chat.id, user.id)
    return redirect(url_for("chats.show", chat_id=chat.id))


@blueprint.get("/chats/<chat_id>")
@sign_in_required
def show(chat_id: str) -> ResponseReturnValue:
    """The thread. Whoever is shown its end has read it, however soon they leave."""
    member = my_membership(chat_id)
    with services().database.reading() as db:
        messages, older = page_of(db, chat_id)
        chats = chat_list(db, me().id)
    last = messages[-1].number if messages else 0
    if last > member.read_number:
        with services().database.writing() as db:
            threads.mark_read(db, member, last)
    return render_template(
        "thread.html",
        chat=member.chat,
        title=title_for(member.chat, me().id),
        messages=messages,
        older=older,
        read_number=last,
        chats=chats,
        active=chat_id,
    )


@blueprint.post("/chats/<chat_id>/members")
@sign_in_required
def add_member(chat_id: str) -> ResponseReturnValue:
    my_membership(chat_id)
    name = request.form.get("name", "").strip()
    with services().database.writing() as db:
        user = user_named(db, name)
        added = user is not None and threads.add_member(db, chat_id, user.id)
    if user is None:
        flash(f"Nobody here is called {name}. Send them the invite link instead.", "error")
    else:
        flash(f"{user.name} is in." if added else f"{user.name} was in already.")
    return redirect(url_for("chats.show", chat_id=chat_id))


@blueprint.post("/chats/<chat_id>/read")
@sign_in_required
def read(chat_id: str) -> ResponseReturnValue:
    member = my_membership(chat_id)
    number = request.form.get("number", type=int)
    if number is None:
        abort(400)
    with services().database.writing() as db:
        threads.mark_read(db, member, min(number, member.chat.version))
    return "", 204


@blueprint.get("/join/<token>")
def invitation(token: str) -> ResponseReturnValue:
    """An invite link. Strangers sign up or log in first and find themselves in the chat."""
    chat = _invited_chat(token)
    user = signed_in()
    if user is None:
        session["invite"] = token
        return redirect(url_for("auth.sign_up"))
    if any(member.user_id == user.id for member in chat.members):
        return redirect(url_for("chats.show", chat_id=chat.id))
    return render_template("join.html", chat=chat, token=token)


@blueprint.post("/join/<token>")
@sign_in_required
def join(token: str) -> ResponseReturnValue:
    chat = _invited_chat(token)
    with services().database.writing() as db:
        threads.add_member(db, chat.id, me().id)
    return redirect(url_for("chats.show", chat_id=chat.id))


def _invited_chat(token: str) -> Chat:
    with services().database.reading() as db:
        return chat_invited_to(db, token) or abort(404)


def _new_form(error: str | None = None) -> str:
    return render_template(
        "new_chat.html", error=error, name=request.form.get("name", ""), friend=request.form.get("friend", "")
    )
