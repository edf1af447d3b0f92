"""Two friends talk: nobody ever reloads a page."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import FilePayload, expect

from tests.apps.browser.visitor import Visitor, shown, word_error_rate
from tests.services import Speech

pytestmark = pytest.mark.slow

Visit = Callable[..., Visitor]


@pytest.fixture
def photograph() -> FilePayload:
    """A picture as a camera makes it, on its side and saying so."""
    image = Image.new("RGB", (900, 600), "#2f6f8f")
    ImageDraw.Draw(image).ellipse((250, 100, 650, 500), fill="#ffc857")
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    return {"name": "holiday.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}


@pytest.fixture
def friends(visit: Visit) -> tuple[Visitor, Visitor]:
    """Ada, who has signed up, and Grace, who came by Ada's invite link; both look at their thread."""
    ada, grace = visit("ada"), visit("grace")
    ada.sign_up()
    address = ada.new_chat()
    ada.stay()
    grace.sign_up(ada.invite_link())
    assert grace.page.url == address
    grace.stay()
    return ada, grace


def test_friends_talk_and_see_each_other_without_reloading(friends: tuple[Visitor, Visitor], speech: Speech) -> None:
    ada, grace = friends
    expect(ada.page.locator("#people")).to_contain_text(grace.name)

    for sent, (speaker, listener) in enumerate(((ada, grace), (grace, ada)), 1):
        took = speaker.record(seconds=_length(speech) + 2)
        speaker.send()

        expect(listener.messages).to_have_count(sent)
        expect(listener.transcript()).to_be_visible()
        heard = listener.transcript().inner_text()
        assert word_error_rate(heard, speech.clips[0].transcript) <= 0.25, heard
        assert shown(listener.messages.last.locator(".card img"))
        length = float(listener.messages.last.locator("voice-player").get_attribute("data-duration") or 0)
        assert _length(speech) + 0.5 <= length <= took
        expect(speaker.transcript()).to_have_text(heard)

    assert ada.stayed
    assert grace.stayed


def test_recording_that_arrived_can_be_played_and_wound(friends: tuple[Visitor, Visitor], speech: Speech) -> None:
    ada, grace = friends
    ada.record(seconds=6)
    ada.send()
    expect(grace.messages).to_have_count(1)
    player = grace.messages.last.locator("voice-player")
    length = float(player.get_attribute("data-duration") or 0)

    slider = player.get_by_role("slider")
    wind = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"

    slider.evaluate(wind, 700)
    expect(slider).to_have_attribute("aria-valuetext", f"0:{int(length * 0.7):02} of 0:{int(length):02}")
    slider.evaluate(wind, 100)
    player.get_by_role("button", name="Play").click()

    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    expect(player.get_by_role("button", name="Play")).to_be_visible()  # and comes to its end


def test_picture_goes_alone_and_with_a_voice_message(
    friends: tuple[Visitor, Visitor], speech: Speech, photograph: FilePayload
) -> None:
    ada, grace = friends

    ada.attach(photograph)
    ada.send()
    picture = grace.messages.last.locator(".picture img")
    assert shown(picture)
    width, height = picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]")
    assert width < height  # upright: the camera was held on its side

    grace.attach(photograph)
    grace.upload(speech.clips[1].path)
    grace.send()
    assert shown(ada.messages.last.locator(".picture img").first)
    expect(ada.transcript()).to_be_visible()
    assert word_error_rate(ada.transcript().inner_text(), speech.clips[1].transcript) <= 0.25
    assert ada.stayed
    assert grace.stayed


def test_chat_list_tells_what_is_new_while_one_looks_at_it(
    friends: tuple[Visitor, Visitor], photograph: FilePayload
) -> None:
    ada, grace = friends
    grace.page.goto("/chats")
    grace.stay()

    ada.attach(photograph)
    ada.send()

    expect(grace.page.locator(".chat.unread .badge")).to_contain_text("1")
    expect(grace.page.locator(".chat-preview")).to_have_text(f"{ada.name}: Picture")
    assert grace.stayed
    grace.page.locator(".chat").click()
    expect(grace.messages).to_have_count(1)
    grace.page.goto("/chats")
    expect(grace.page.locator(".badge")).to_have_count(0)


def _length(speech: Speech) -> int:
    with wave.open(str(speech.clips[0].path), "rb") as clip:
        return round(clip.getnframes() / clip.getframerate())
