"""What the workers find is written beside the message, once, whatever comes twice, late or for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from apps.chat import tasks, threads
from apps.chat.models import Message
from apps.chat.settings import Settings
from apps.chat.web.context import Services
from apps.events import (
    ImageReady,
    MessageCreated,
    Rendition,
    Transcribed,
    TranscriptionStarted,
    app,
    image_ready,
    transcribe_dead_letters,
    transcribed,
    transcription_started,
)
from pulsartasks import DeadLetter
from tests.apps.chat.conftest import PNG, Person, tone

MakePerson = Callable[[str], Person]
CARD = {"card": Rendition("made/card", "image/png", 1200, 630)}


@pytest.fixture
def sent(person: MakePerson, services: Services) -> tuple[str, str]:
    """A chat and a message in it, with a recording and a picture."""
    ada = person("Ada")
    chat = ada.new_chat()
    answer = ada.send(chat, audio=tone(), picture=PNG).json or {}
    return chat, answer["id"]


@pytest.fixture
def message(services: Services, sent: tuple[str, str]) -> Callable[[], Message]:
    """The message as it is now."""

    def read() -> Message:
        with services.database.reading() as db:
            found = db.get(Message, sent[1])
            assert found is not None
            return found

    return read


@pytest.fixture
def written(services: Services) -> Callable[..., bool]:
    """Runs one change in a transaction; True if it changed something."""

    def write(change: Callable[..., bool], *args: object) -> bool:
        with services.database.writing() as db:
            return change(db, *args)

    return write


def test_transcript_is_final(
    sent: tuple[str, str], message: Callable[[], Message], written: Callable[..., bool]
) -> None:
    chat, message_id = sent
    assert written(threads.write_transcript, Transcribed(message_id, chat, "ok", "Good morning", "en", 1.25))
    before = message()

    assert not written(threads.write_transcript, Transcribed(message_id, chat, "ok", "Good mourning"))
    assert not written(threads.write_transcript, Transcribed(message_id, chat, "failed", reason="a late dead letter"))
    assert not written(threads.note_started, TranscriptionStarted(message_id, chat))

    assert (message().transcript, message().duration, message().version) == ("Good morning", 1.25, before.version)


def test_failure_gives_way_to_whatever_comes_later(
    sent: tuple[str, str], message: Callable[[], Message], written: Callable[..., bool]
) -> None:
    chat, message_id = sent
    written(threads.write_transcript, Transcribed(message_id, chat, "failed", reason="the engine was away"))

    assert written(threads.write_transcript, Transcribed(message_id, chat, "no_speech"))

    assert (message().transcript_state, message().transcript_reason) == ("no_speech", "")


def test_same_card_or_picture_twice_changes_nothing(
    sent: tuple[str, str], message: Callable[[], Message], written: Callable[..., bool]
) -> None:
    chat, message_id = sent
    card = ImageReady(message_id, chat, "card", "ok", CARD)
    picture = ImageReady(message_id, chat, "picture", "ok", CARD)

    assert [written(threads.write_image, image) for image in (card, card, picture, picture)] == [
        True,
        False,
        True,
        False,
    ]
    assert (message().picture_state, message().card["card"]["key"]) == ("ok", "made/card")


def test_card_that_cannot_be_drawn_leaves_the_message_as_it_is(
    sent: tuple[str, str], written: Callable[..., bool]
) -> None:
    chat, message_id = sent

    assert not written(threads.write_image, ImageReady(message_id, chat, "card", "failed", reason="no such letters"))


def test_finding_for_a_message_of_another_chat_is_not_written(
    sent: tuple[str, str], person: MakePerson, written: Callable[..., bool]
) -> None:
    other = person("Eve").new_chat()

    assert not written(threads.write_transcript, Transcribed(sent[1], other, "ok", "not yours"))


@pytest.fixture
def worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The chat's worker in this thread: what is published has been written when `publish` returns."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("BLOB_STORE", settings.blob_store)
    monkeypatch.setenv("SECRET_KEY", settings.secret_key)
    # The other apps' are there where another test of this process imported them, as the chat's worker never does.
    own = {name: task for name, task in app.tasks.items() if task.function.__module__ == tasks.__name__}
    monkeypatch.setattr(app, "_tasks", own)
    with app.testing(eager=True):
        yield


def test_findings_reach_the_thread_through_the_topics(
    worker: None, sent: tuple[str, str], message: Callable[[], Message]
) -> None:
    chat, message_id = sent

    transcription_started.publish(TranscriptionStarted(message_id, chat))
    transcribed.publish(Transcribed(message_id, chat, "ok", "Good morning", "en", 1.25))
    image_ready.publish(ImageReady(message_id, chat, "card", "ok", CARD))

    assert (message().transcript_state, message().transcript) == ("ok", "Good morning")
    assert message().card == {"card": {"key": "made/card", "content_type": "image/png", "width": 1200, "height": 630}}


def test_finding_for_a_message_that_is_gone_is_logged_and_done(
    worker: None, sent: tuple[str, str], message: Callable[[], Message]
) -> None:
    chat, message_id = sent

    with capture_logs() as logs:
        transcribed.publish(Transcribed("gone", chat, "ok", "hello?"))
        transcribed.publish(Transcribed("gone", "gone-too", "ok", "hello?"))
        transcribed.publish(Transcribed(message_id, chat, "ok", "still here"))

    assert [entry["message_id"] for entry in logs if entry["event"] == "finding.ignored"] == ["gone", "gone"]
    assert message().transcript == "still here"


def test_dead_letter_is_shown_with_its_reason(
    worker: None, sent: tuple[str, str], message: Callable[[], Message]
) -> None:
    chat, message_id = sent
    death = {"pt-reason": "failed", "pt-exception-type": "MemoryError", "pt-exception-message": "", "pt-attempts": "6"}
    assert DeadLetter.from_headers(death) is not None

    transcribe_dead_letters.publish(MessageCreated(message_id, chat, audio="messages/x/audio"))

    assert message().transcript_state == "failed"
    assert message().picture_state == "waiting"


@pytest.mark.parametrize(
    ("attempts", "message", "words"),
    [(6, "the storage is away", "given up after 6 attempts (the storage is away)"), (1, "", "given up (MemoryError)")],
)
def test_why_something_was_given_up_is_said_in_words(attempts: int, message: str, words: str) -> None:
    death = DeadLetter("failed", "MemoryError", message, "Traceback...", attempts, "w", "", "", "t", "s")

    assert tasks.why(death) == words
    assert tasks.why(None) == "it was given up"
