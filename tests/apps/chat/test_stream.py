"""The live stream: nothing is missed, nothing comes twice, nothing is held while nothing happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from apps.chat import threads
from apps.chat.live import Live
from apps.chat.models import Message
from apps.chat.web.context import Services
from apps.events import ThreadChanged, Transcribed, TranscriptionStarted, thread_changed
from tests.apps.chat.conftest import PNG, Person, tone

MakePerson = Callable[[str], Person]


@dataclass
class Event:
    name: str
    id: int
    data: dict[str, Any]


class Reader:
    """Reads a stream as a browser does."""

    def __init__(self, chunks: Iterator[bytes], context: Context) -> None:
        self._chunks = chunks
        self._context = context

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """The first event that is wanted, within a hundred others."""
        for _ in range(100):
            event = self.next()
            if event is not None and wanted(event):
                return event
        raise AssertionError("it never came")

    def next(self) -> Event | None:
        """The next event; None for a comment or a setting."""
        fields = dict(
            line.split(": ", 1) for line in self._context.run(next, self._chunks).decode().splitlines() if line
        )
        if "event" not in fields:
            return None
        return Event(fields["event"], int(fields["id"]), json.loads(fields["data"]))


@contextmanager
def stream(person: Person, query: str = "", **headers: str) -> Iterator[Reader]:
    context = Context()  # in a server it would have a thread of its own
    answer = context.run(lambda: person.get(f"/events{query}", headers=headers, buffered=False))
    assert answer.mimetype == "text/event-stream"
    try:
        yield Reader(iter(answer.response), context)  # type: ignore[arg-type]
    finally:
        context.run(answer.close)


def is_bubble(event: Event) -> bool:
    return event.name == "bubble"


@pytest.fixture
def friends(person: MakePerson) -> tuple[Person, Person, str]:
    ada, grace = person("Ada"), person("Grace")
    return ada, grace, ada.new_chat(friend="Grace")


def test_message_comes_to_those_who_look_at_the_thread(friends: tuple[Person, Person, str]) -> None:
    ada, grace, chat = friends

    with stream(grace, f"?chat={chat}&since=2") as reader:
        reader.until(lambda event: event.name == "chats")
        sent = ada.send(chat, audio=tone()).json or {}
        bubble = reader.until(is_bubble)

    assert bubble.data["id"] == sent["id"]
    assert "<strong>Ada</strong>" in bubble.data["html"]
    assert (bubble.id, bubble.data["version"]) == (3, 3)


def test_whoever_comes_back_gets_all_that_changed_since_and_no_more(
    friends: tuple[Person, Person, str], services: Services
) -> None:
    ada, grace, chat = friends
    first, second = ((ada.send(chat, f"message-{n}", audio=tone()).json or {})["id"] for n in range(2))
    with services.database.writing() as db:
        threads.write_transcript(db, Transcribed(first, chat, "ok", "while you were away"))

    with stream(grace, f"?chat={chat}&since=2", **{"Last-Event-ID": "3"}) as reader:
        bubbles = [reader.until(is_bubble), reader.until(is_bubble)]

    assert [(bubble.data["id"], bubble.id) for bubble in bubbles] == [(second, 4), (first, 5)]
    assert "while you were away" in bubbles[1].data["html"]


def test_lost_hint_is_made_good_by_the_next_heartbeat(
    friends: tuple[Person, Person, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, grace, chat = friends
    monkeypatch.setattr(Live, "_follow", lambda self: None)  # nobody ever calls

    with stream(grace, f"?chat={chat}&since=2") as reader:
        reader.until(lambda event: event.name == "chats")
        ada.send(chat, picture=PNG)
        assert reader.until(is_bubble).id == 3


def test_silent_stream_holds_no_connection_and_shows_that_it_lives(
    friends: tuple[Person, Person, str], services: Services
) -> None:
    _, grace, chat = friends
    pool = services.database.engine.pool
    assert isinstance(pool, sa.QueuePool)

    with stream(grace, f"?chat={chat}&since=2") as reader:
        while reader.next() is not None or pool.checkedout():
            pass
        assert pool.checkedout() == 0


def test_chat_list_tells_of_new_chats_and_of_what_is_unread(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")

    with stream(grace) as reader:
        assert "No chats yet" in reader.until(lambda event: event.name == "chats").data["html"]
        chat = ada.new_chat(friend="Grace")
        assert chat in reader.until(lambda event: event.name == "chats").data["html"]
        ada.send(chat, picture=PNG)
        assert "badge" in reader.until(lambda event: event.name == "chats").data["html"]


def test_open_chat_is_not_unread_for_those_who_look_at_it(friends: tuple[Person, Person, str]) -> None:
    ada, grace, chat = friends
    ada.send(chat, picture=PNG)

    with stream(grace, f"?chat={chat}&since=0") as reader:
        assert "badge" not in reader.until(lambda event: event.name == "chats").data["html"]


def test_new_member_shows_in_the_head_of_the_thread(person: MakePerson, friends: tuple[Person, Person, str]) -> None:
    ada, grace, chat = friends
    person("Edsger")

    with stream(grace, f"?chat={chat}&since=2") as reader:
        ada.post(f"/chats/{chat}/members", name="Edsger")
        assert "Edsger" in reader.until(lambda event: event.name == "people").data["html"]


def test_oldest_stream_makes_room_when_there_are_too_many(web: Flask) -> None:
    live = Live(thread_changed, limit=2)

    with live.listening("ada") as first, live.listening("ada") as second, live.listening("grace") as third:
        assert (first.dismissed, second.dismissed, third.dismissed) == (True, False, False)
        assert first.wait(0)
    live.close()


def test_change_wakes_those_whom_it_concerns(web: Flask, services: Services) -> None:
    with services.live.listening("ada") as ada:
        assert ada.wait(60)  # the tail is there, and has called everybody
        with services.live.listening("grace") as grace:
            thread_changed.publish(ThreadChanged("a-chat", 7, ("ada",)))

            assert ada.wait(60)
            assert not grace.wait(0.2)


def test_versions_are_seen_in_their_order_though_findings_come_at_once(
    friends: tuple[Person, Person, str], services: Services, web: Flask
) -> None:
    """Many writers, one reader that always asks for what came after the last it saw: it misses nothing."""
    ada, _, chat = friends
    ids = [(ada.send(chat, f"message-{n}", audio=tone(0.1)).json or {})["id"] for n in range(12)]

    def write(message_id: str) -> None:
        with services.database.writing() as db:
            threads.note_started(db, TranscriptionStarted(message_id, chat))
        with services.database.writing() as db:
            threads.write_transcript(db, Transcribed(message_id, chat, "ok", message_id))

    writers = [threading.Thread(target=write, args=(message_id,)) for message_id in ids]
    for writer in writers:
        writer.start()
    seen, finished = 0, set[str]()
    writing = True
    while writing:
        writing = any(writer.is_alive() for writer in writers)  # before the look: the last one sees everything
        with services.database.reading() as db:
            news = db.scalars(
                sa.select(Message).where(Message.chat_id == chat, Message.version > seen).order_by(Message.version)
            ).all()
        for message in news:
            seen = message.version
            if message.transcript_state == "ok":
                finished.add(message.id)
    for writer in writers:
        writer.join()

    assert finished == set(ids)
