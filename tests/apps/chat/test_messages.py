from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from apps.chat import threads
from apps.chat.models import Message, outbox
from apps.chat.web.context import Services
from apps.events import ImageReady, MessageCreated, Rendition, ThreadChanged, Transcribed
from pulsartasks.contrib.blobs import BlobStoreUnavailableError
from tests.apps.chat.conftest import PNG, Person, tone

MakePerson = Callable[[str], Person]


@pytest.fixture
def outgoing(services: Services) -> Callable[[], list[tuple[str, Any]]]:
    """What the outbox holds: short topic names and the payloads."""

    def read() -> list[tuple[str, Any]]:
        kinds: dict[str, Any] = {"message-created": MessageCreated, "thread-changed": ThreadChanged}
        with services.database.reading() as db:
            rows = db.execute(sa.select(outbox.table.c.topic, outbox.table.c.value).order_by(outbox.table.c.id)).all()
        named = [(topic.rpartition(".")[2], value) for topic, value in rows]
        return [(name, msgspec.json.decode(value, type=kinds[name])) for name, value in named]

    return read


def only_message(services: Services) -> Message:
    with services.database.reading() as db:
        return db.scalars(sa.select(Message)).one()


def test_voice_message_appears_in_the_thread_with_its_true_duration(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat = ada.new_chat(friend="Grace")

    answer = ada.send(chat, audio=tone(2.0))

    assert answer.status_code == 201
    seen = grace.get(f"/chats/{chat}").text
    assert 'data-duration="2.0"' in seen
    assert "Waiting to be transcribed" in seen


def test_sending_stores_the_files_and_tells_the_workers_in_the_same_transaction(
    person: MakePerson, services: Services, outgoing: Callable[[], list[tuple[str, Any]]]
) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    ada.send(chat, audio=tone(), picture=PNG)

    message = only_message(services)
    created = next(event for name, event in outgoing() if name == "message-created")
    assert created == MessageCreated(message.id, chat, message.audio, "audio/wav", message.picture, "image/png")
    assert services.blobs.get(created.audio).data == tone()
    assert services.blobs.get(created.picture).data == PNG
    last_name, last = outgoing()[-2]
    assert (last_name, last.version, len(last.members)) == ("thread-changed", message.version, 1)


def test_sending_again_never_makes_a_second_message(
    person: MakePerson, services: Services, outgoing: Callable[[], list[tuple[str, Any]]]
) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    first, second = (ada.send(chat, "the-same-one", audio=tone()) for _ in range(2))

    assert second.json == first.json
    assert only_message(services).id == (first.json or {})["id"]
    assert [name for name, _ in outgoing()].count("message-created") == 1


def test_same_name_for_a_message_of_another_person_or_chat_is_another_message(person: MakePerson) -> None:
    ada, grace = person("Ada"), person("Grace")
    chat, other = ada.new_chat(friend="Grace"), ada.new_chat()

    sent = [ada.send(chat, audio=tone()), grace.send(chat, audio=tone()), ada.send(other, audio=tone())]

    assert len({(answer.json or {})["id"] for answer in sent}) == 3


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (b"", "empty"),
        (b"this is a letter, not a recording " * 40, "not audio"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not audio"),
        (tone()[:20], ""),
        (PNG, "not audio"),
    ],
    ids=["empty", "text", "ffconcat", "header only", "picture"],
)
def test_what_is_no_recording_is_refused_with_words_and_nothing_is_sent(
    person: MakePerson, services: Services, audio: bytes, words: str
) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    answer = ada.send(chat, audio=audio)

    assert answer.status_code == 422
    assert words in (answer.json or {})["error"]
    with services.database.reading() as db:
        assert db.scalars(sa.select(Message)).all() == []


@pytest.mark.parametrize("picture", [b"", b"<svg onload=alert(1)>", b"%PDF-1.7", tone()])
def test_what_is_no_picture_is_refused_whatever_it_calls_itself(person: MakePerson, picture: bytes) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    answer = ada.send(chat, picture=picture)

    assert answer.status_code == 422
    assert "not a picture" in (answer.json or {})["error"]


def test_nothing_to_send_is_told(person: MakePerson) -> None:
    ada = person("Ada")

    answer = ada.send(ada.new_chat())

    assert (answer.status_code, "nothing to send" in (answer.json or {})["error"]) == (422, True)


def test_too_much_is_refused_with_the_limit(person: MakePerson) -> None:
    ada = person("Ada")

    answer = ada.client.post(
        f"/chats/{ada.new_chat()}/messages",
        data=b"\0" * 3_000_000,
        content_type="multipart/form-data; boundary=x",
        headers={"Accept": "application/json"},
    )

    assert answer.status_code == 413
    assert "2 MB" in (answer.json or {})["error"]


def test_absent_storage_is_told_and_the_next_try_works(
    person: MakePerson, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    def away(*_: object, **__: object) -> None:
        raise BlobStoreUnavailableError("the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(services.blobs, "put", away)
        answer = ada.send(chat, "a-message", audio=tone())
    assert answer.status_code == 503
    assert "nothing is lost" in (answer.json or {})["error"].lower()

    assert ada.send(chat, "a-message", audio=tone()).status_code == 201


def test_signed_out_sender_is_told_to_log_in(person: MakePerson) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    ada.post("/log-out")

    answer = ada.send(chat, audio=tone())

    assert answer.status_code == 401
    assert "Log in in another tab" in (answer.json or {})["error"]


def test_stale_page_is_told_so_that_its_script_can_renew_it(person: MakePerson) -> None:
    ada = person("Ada")
    chat = ada.new_chat()

    answer = ada.client.post(f"/chats/{chat}/messages", headers={"Accept": "application/json", "X-CSRFToken": "old"})

    assert (answer.status_code, (answer.json or {})["code"]) == (400, "stale-page")


def test_names_and_transcripts_are_shown_as_text(person: MakePerson, services: Services) -> None:
    ada = person("Ada")
    chat = ada.new_chat(name="<script>alert(1)</script>")
    ada.send(chat, audio=tone())
    message = only_message(services)

    with services.database.writing() as db:
        threads.write_transcript(db, Transcribed(message.id, chat, "ok", "<img src=x onerror=alert(1)>"))

    page = ada.get(f"/chats/{chat}").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_every_state_of_a_transcript_has_its_words(person: MakePerson, services: Services) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    words = {
        "ok": "Hello there",
        "no_speech": "No speech found",
        "failed": "Transcription failed: This recording is damaged",
    }
    for status in words:
        sent = ada.send(chat, f"message-{status}", audio=tone())
        finding = Transcribed(
            (sent.json or {})["id"],
            chat,
            status,  # type: ignore[arg-type]
            text="Hello there" if status == "ok" else "",
            reason="This recording is damaged" if status == "failed" else None,
        )
        with services.database.writing() as db:
            threads.write_transcript(db, finding)

    page = ada.get(f"/chats/{chat}").text

    assert all(text in page for text in words.values())
    assert page.count("data-try-again=") == 1
    assert "You: Voice message" in ada.get("/chats").text


def test_try_again_asks_only_for_what_failed(
    person: MakePerson, services: Services, outgoing: Callable[[], list[tuple[str, Any]]]
) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    ada.send(chat, audio=tone(), picture=PNG)
    message = only_message(services)
    with services.database.writing() as db:
        threads.write_transcript(db, Transcribed(message.id, chat, "failed", reason="the engine was away"))
        rendition = Rendition("r/1", "image/webp", 10, 10)
        threads.write_image(db, ImageReady(message.id, chat, "picture", "ok", {"large": rendition}))

    answer = ada.post(f"/messages/{message.id}/try-again", accept="application/json")

    assert "Waiting to be transcribed" in (answer.json or {})["html"]
    requests = [event for name, event in outgoing() if name == "message-created"]
    assert requests[-1] == MessageCreated(message.id, chat, message.audio, "audio/wav")
    ada.post(f"/messages/{message.id}/try-again", accept="application/json")
    assert len([name for name, _ in outgoing() if name == "message-created"]) == len(requests) == 2


def test_recording_is_played_in_ranges_with_the_type_that_was_found_out(person: MakePerson, services: Services) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    ada.send(chat, audio=tone())
    address = f"/messages/{only_message(services).id}/audio"

    whole, part = ada.get(address), ada.get(address, headers={"Range": "bytes=10-19"})

    assert (whole.status_code, whole.data, whole.mimetype) == (200, tone(), "audio/wav")
    assert (part.status_code, part.data) == (206, tone()[10:20])
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Cache-Control"].startswith("private")
    assert "sandbox" in whole.headers["Content-Security-Policy"]


def test_attached_picture_is_served_as_renditions_and_never_as_it_was_uploaded(
    person: MakePerson, services: Services
) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    ada.send(chat, picture=PNG)
    message = only_message(services)
    assert "Preparing the picture" in ada.get(f"/chats/{chat}").text
    services.blobs.put("made/large", b"webp bytes", content_type="image/webp")
    services.blobs.put("made/page", b"<script>", content_type="text/html")
    large, odd = Rendition("made/large", "image/webp", 640, 480), Rendition("made/page", "text/html", 1, 1)

    with services.database.writing() as db:
        threads.write_image(db, ImageReady(message.id, chat, "picture", "ok", {"large": large, "odd": odd}))

    address = re.search(r'<img src="(/messages/[^"]+)" width="640" height="480"', ada.get(f"/chats/{chat}").text)
    assert address is not None
    answer = ada.get(address[1])
    assert (answer.data, answer.mimetype) == (b"webp bytes", "image/webp")
    assert ada.get(f"/messages/{message.id}/picture/odd").status_code == 404
    assert ada.get(f"/messages/{message.id}/picture/original").status_code == 404


def test_voice_card_is_shown_with_the_transcript_as_its_text(person: MakePerson, services: Services) -> None:
    ada = person("Ada")
    chat = ada.new_chat()
    ada.send(chat, audio=tone())
    message = only_message(services)
    services.blobs.put("made/card", b"png bytes", content_type="image/png")

    with services.database.writing() as db:
        threads.write_transcript(db, Transcribed(message.id, chat, "ok", "Good morning"))
        card = {"card": Rendition("made/card", "image/png", 1200, 630)}
        threads.write_image(db, ImageReady(message.id, chat, "card", "ok", card))

    assert 'alt="Voice card: Good morning"' in ada.get(f"/chats/{chat}").text
    assert ada.get(f"/messages/{message.id}/card/card").data == b"png bytes"
