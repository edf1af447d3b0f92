"""Who may see what: every address is tried by whoever has no business there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.test import TestResponse

from apps.chat import threads
from apps.chat.models import Message
from apps.chat.web.context import Services
from apps.events import ImageReady, Rendition
from tests.apps.chat.conftest import PNG, Person, tone

MakePerson = Callable[[str], Person]

OPEN_TO_ALL = {
    "static",
    "auth.front_door",
    "auth.log_in",
    "auth.log_in_submit",
    "auth.sign_up",
    "auth.sign_up_submit",
} | {
    "auth.log_out",
    "health.healthz",
    "chats.invitation",
}
"""What a stranger may reach; an invite link is a secret of its own."""


@pytest.fixture
def addresses(web: Flask, person: MakePerson, services: Services) -> list[tuple[str, str, str]]:
    """Every route but the open ones: endpoint, method and an address of Ada's that exists."""
    ada = person("Ada")
    chat = ada.new_chat()
    ada.send(chat, audio=tone(), picture=PNG)
    with services.database.writing() as db:
        message = db.scalars(sa.select(Message)).one()
        made = {"large": Rendition("made/large", "image/webp", 10, 10)}
        threads.write_image(db, ImageReady(message.id, chat, "picture", "ok", made))
        threads.write_image(db, ImageReady(message.id, chat, "card", "ok", made))
    services.blobs.put("made/large", b"webp", content_type="image/webp")
    values = {"chat_id": chat, "message_id": message.id, "name": "large", "token": "no-such-token"}
    return list(_addresses(web, values))


def _addresses(web: Flask, values: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    for rule in web.url_map.iter_rules():
        if rule.endpoint not in OPEN_TO_ALL:
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule.endpoint, method, re.sub(r"<(?:\w+:)?(\w+)>", lambda found: values[found[1]], rule.rule)


def ask(person: Person, method: str, address: str) -> TestResponse:
    return person.get(address) if method == "GET" else person.post(address, name="x", number="1", client_id="abcdefgh")


def test_strangers_see_nothing(addresses: list[tuple[str, str, str]], stranger: MakePerson) -> None:
    nobody = stranger("Nobody")

    for endpoint, method, address in addresses:
        answer = ask(nobody, method, address)
        assert answer.status_code in (302, 401), (endpoint, answer.status)
        if answer.status_code == 302:
            assert answer.location.startswith("/log-in"), endpoint


def test_to_those_outside_a_chat_it_does_not_exist(addresses: list[tuple[str, str, str]], person: MakePerson) -> None:
    eve = person("Eve")
    of_the_chat = [row for row in addresses if re.search("[0-9a-f]{32}", row[2])]
    assert len(of_the_chat) >= 8

    for endpoint, method, address in of_the_chat:
        assert ask(eve, method, address).status_code == 404, endpoint


def test_stream_of_somebody_elses_chat_does_not_exist(person: MakePerson) -> None:
    ada, eve = person("Ada"), person("Eve")
    chat = ada.new_chat()

    assert eve.get(f"/events?chat={chat}").status_code == 404
    assert eve.get("/events?chat=nothing").status_code == 404
    assert eve.get("/events?since=x").status_code == 400


def test_pages_run_no_script_and_style_of_others(person: MakePerson) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    for address in ("/log-in", "/chats", f"/chats/{chat}", "/nothing-here", "/static/app.js"):
        answer = ada.get(address)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert not re.search(r"<[^>]+\s(?:style|on\w+)=", answer.text.split("<body")[-1]) or address.endswith(".js")


def test_session_cookie_is_kept_from_scripts_and_other_sites(stranger: MakePerson) -> None:
    cookie = stranger("Ada").sign_up().headers["Set-Cookie"]

    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


def test_health_tells_that_pages_can_be_served(stranger: MakePerson) -> None:
    assert stranger("Probe").get("/healthz").json == {"status": "ok"}
