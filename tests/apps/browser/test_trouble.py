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
from playwright.sync_api import expect

from tests.apps.browser.visitor import Visitor, file, word_error_rate
from tests.apps.running import RunningBabbleBox
from tests.services import Speech

pytestmark = pytest.mark.slow

Visit = Callable[..., Visitor]


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


def test_silence_and_a_picture_bomb_are_told_in_the_thread_and_the_workers_live(
    ada: Visitor, babblebox: RunningBabbleBox, speech: Speech
) -> None:
    deaths = babblebox.deaths
    ada.upload(file("silence.wav", wav(silence=4.0)))
    ada.send()
    ada.attach(file("bomb.png", picture_bomb(), "image/png"))
    bomb = ada.send()

    expect(ada.messages.first.locator("[data-transcript=no_speech]")).to_have_text("No speech found")
    expect(ada.messages.nth(1).locator("[data-picture=failed]")).to_contain_text("The picture cannot be shown")
    expect(bomb.get_by_role("button", name="Try again")).to_be_visible()
    ada.upload(speech.clips[1].path)
    ada.send()
    expect(ada.transcript()).to_be_visible()
    assert babblebox.deaths == deaths


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
    expect(ada.transcript()).to_be_visible(timeout=300_000)  # a minute of speech, where other tests run
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
