"""What goes wrong is told where the person is, nothing is lost, and everything goes on."""

from __future__ import annotations

import io
import re
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Route, expect

from tests.apps.browser.conftest import FAKE_DEVICE, MakeBrowser
from tests.apps.browser.visitor import Visitor, word_error_rate
from tests.apps.running import RunningBabbleBox
from tests.services import Speech

pytestmark = pytest.mark.slow

Visit = Callable[..., Visitor]


def file(name: str, data: bytes, kind: str = "audio/webm") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


def wav(*paths: Path, silence: float = 0.0) -> bytes:
    """Clips, one after the other, and a silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as joined:
        joined.setnchannels(1)
        joined.setsampwidth(2)
        joined.setframerate(16_000)
        for path in paths:
            with wave.open(str(path), "rb") as clip:
                joined.writeframes(clip.readframes(clip.getnframes()))
        joined.writeframes(b"\0\0" * int(16_000 * silence))
    return out.getvalue()


def picture_bomb() -> bytes:
    """A small PNG file that claims 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.fixture
def ada(visit: Visit) -> Visitor:
    """Somebody who has signed up and looks at a chat of her own."""
    ada = visit("ada")
    ada.sign_up()
    ada.new_chat()
    return ada


def test_failed_send_keeps_the_recording_and_sending_again_sends_it_once(ada: Visitor, speech: Speech) -> None:
    ada.upload(speech.clips[1].path)
    arrived: list[str] = []

    def lose_the_answer(route: Route) -> None:
        arrived.append(route.fetch().text())
        route.abort()

    ada.page.route("**/messages", lambda route: route.abort(), times=1)
    ada.page.locator("#send").click()
    expect(ada.page.get_by_role("alert")).to_contain_text("Nothing is lost")

    ada.page.route("**/messages", lose_the_answer, times=1)
    ada.page.get_by_role("button", name="Send again").click()
    expect(ada.page.get_by_role("alert")).to_contain_text("Nothing is lost")
    assert len(arrived) == 1

    ada.page.get_by_role("button", name="Send again").click()
    expect(ada.page.locator("#composer")).to_have_attribute("data-state", "idle")
    expect(ada.messages).to_have_count(1)
    ada.page.reload()
    expect(ada.messages).to_have_count(1)


def test_refused_microphone_is_explained_and_a_file_can_be_sent_instead(
    visit: Visit, make_browser: MakeBrowser, speech: Speech
) -> None:
    ada = visit("ada", make_browser(FAKE_DEVICE))
    ada.sign_up()
    ada.new_chat()

    ada.page.get_by_role("button", name="Record", exact=True).click()

    expect(ada.page.get_by_role("alert")).to_contain_text("The microphone is blocked")
    expect(ada.page.get_by_role("alert")).to_contain_text("upload a recording instead")
    ada.upload(speech.clips[1].path)
    ada.send()


def test_absent_microphone_is_explained(visit: Visit, make_browser: MakeBrowser) -> None:
    ada = visit("ada", make_browser())
    ada.sign_up()
    ada.new_chat()

    ada.page.get_by_role("button", name="Record", exact=True).click()

    expect(ada.page.get_by_role("alert")).to_contain_text(re.compile("No microphone was found|microphone is blocked"))


def test_everything_works_by_keyboard(ada: Visitor) -> None:
    def press(control: str, key: str = "Enter") -> None:
        for _ in range(40):
            ada.page.keyboard.press("Tab")
            if ada.page.locator(control).evaluate("(element) => element === document.activeElement"):
                return ada.page.keyboard.press(key)
        raise AssertionError(f"{control} is not reached with the Tab key")

    press("#record")
    expect(ada.page.locator("#timer")).to_have_text("0:02")
    ada.page.keyboard.press("Enter")  # the focus is on Stop
    expect(ada.page.locator("#send")).to_be_focused()
    press("#review .play", "Space")
    expect(ada.page.locator("#review").get_by_role("button", name="Pause")).to_be_visible()
    press("#send")
    expect(ada.messages).to_have_count(1)
    press("#invite-open")
    expect(ada.page.locator("#member")).to_be_visible()
    ada.page.keyboard.press("Escape")
    expect(ada.page.locator("#member")).to_be_hidden()


def test_recording_can_be_cancelled(ada: Visitor) -> None:
    ada.page.get_by_role("button", name="Record", exact=True).click()
    expect(ada.page.locator("#timer")).to_have_text("0:01")

    ada.page.get_by_role("button", name="Cancel the recording").click()

    expect(ada.page.locator("#record")).to_be_focused()
    expect(ada.messages).to_have_count(0)


def test_nothing_is_cut_off_on_a_narrow_phone(visit: Visit, speech: Speech) -> None:
    ada = visit("ada", width=360, height=640)

    def assert_fits() -> None:
        assert ada.page.evaluate("document.documentElement.scrollWidth") <= 360

    for address in ("/log-in", "/sign-up", "/nothing-here"):
        ada.page.goto(address)
        assert_fits()
    ada.sign_up()
    assert_fits()
    ada.new_chat()
    assert_fits()
    ada.upload(speech.clips[0].path)
    assert_fits()
    ada.send()
    expect(ada.transcript()).to_be_visible()
    assert_fits()
    ada.page.get_by_role("link", name="Back to the chats").click()
    expect(ada.page.locator(".chat")).to_be_visible()
    assert_fits()


@pytest.mark.parametrize(
    ("recording", "words"),
    [
        (file("empty.webm", b""), "empty"),
        (file("letter.webm", b"Dear Grace, this is a letter. " * 50), "not audio"),
        (file("list.webm", b"ffconcat version 1.0\nfile 'message.webm'\n"), "not audio"),
    ],
    ids=["empty", "text", "ffconcat"],
)
def test_what_is_no_recording_is_refused_in_the_form(ada: Visitor, recording: FilePayload, words: str) -> None:
    ada.upload(recording)

    ada.page.locator("#send").click()

    expect(ada.page.get_by_role("alert")).to_contain_text(words)
    expect(ada.messages).to_have_count(0)
    ada.page.get_by_role("button", name="Throw the recording away").click()
    expect(ada.page.get_by_role("alert")).to_have_count(0)


def test_silence_and_a_picture_bomb_are_told_in_the_thread_and_the_workers_live(
    ada: Visitor, babblebox: RunningBabbleBox, speech: Speech
) -> None:
    ada.upload(file("silence.wav", wav(silence=4.0)))
    silent = ada.send()
    ada.attach(file("bomb.png", picture_bomb(), "image/png"))
    bomb = ada.send()

    expect(ada.messages.first.locator("[data-transcript=no_speech]")).to_have_text("No speech found")
    expect(ada.messages.nth(1).locator("[data-picture=failed]")).to_contain_text("The picture cannot be shown")
    expect(bomb.get_by_role("button", name="Try again")).to_be_visible()
    assert silent is not None
    ada.upload(speech.clips[1].path)
    ada.send()
    expect(ada.transcript()).to_be_visible()
    assert babblebox.deaths == []


def test_unknown_chat_and_somebody_elses_are_told_alike(ada: Visitor, visit: Visit) -> None:
    address = ada.page.url
    eve = visit("eve")
    eve.sign_up()

    for nowhere in (address, "/chats/" + "0" * 32):
        eve.page.goto(nowhere)
        expect(eve.page.get_by_role("heading")).to_have_text("Not here")


def test_try_again_works_once_the_cause_is_gone(ada: Visitor, babblebox: RunningBabbleBox, speech: Speech) -> None:
    clip = speech.clips[1]
    with babblebox.worker_suspended("transcribe"):
        ada.upload(clip.path)
        message_id = (ada.send().get_attribute("id") or "").removeprefix("m-")
        key = f"messages/{message_id}/audio"
        recording = babblebox.blobs.get(key)
        babblebox.blobs.delete(key)

    expect(ada.messages.last.locator("[data-transcript=failed]")).to_contain_text("Transcription failed")
    babblebox.blobs.put(key, recording.data, recording.content_type)
    ada.page.get_by_role("button", name="Try again").click()

    expect(ada.transcript()).to_be_visible()
    assert word_error_rate(ada.transcript().inner_text(), clip.transcript) <= 0.25
    expect(ada.page.get_by_role("button", name="Try again")).to_have_count(0)


def test_message_whose_worker_was_killed_is_transcribed_once_by_the_next(
    ada: Visitor, babblebox: RunningBabbleBox, speech: Speech
) -> None:
    clips = [clip.path for clip in speech.clips] * 4
    ada.upload(file("long.wav", wav(*clips), "audio/wav"))
    message_id = (ada.send().get_attribute("id") or "").removeprefix("m-")
    finished = re.compile(rf"recording\.transcribed .*{message_id}")
    expect(ada.messages.last.locator("[data-transcript=transcribing]")).to_be_visible()

    babblebox.kill_worker("transcribe")

    assert finished.findall(babblebox.log_text) == []  # it was killed in the middle
    expect(ada.transcript()).to_be_visible(timeout=120_000)
    assert len(finished.findall(babblebox.log_text)) == 1
    assert "ill disposed" in ada.transcript().inner_text().lower().replace("-", " ")
    ada.page.reload()
    expect(ada.page.locator("[data-transcript]")).to_have_count(1)


def test_speech_comes_back_nearly_word_for_word(ada: Visitor, speech: Speech) -> None:
    heard = []
    for clip in speech.clips:
        ada.upload(clip.path)
        ada.send()
        expect(ada.transcript()).to_be_visible()
        heard.append(ada.transcript().inner_text())

    assert word_error_rate(heard, [clip.transcript for clip in speech.clips]) <= 0.07, heard
