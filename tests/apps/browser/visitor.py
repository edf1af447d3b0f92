"""Somebody who uses BabbleBox with a browser: what a person does, in a person's words."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from jiwer import wer
from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.services import wait_until


class Visitor:
    """One person, one page."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = f"{name}-{secrets.token_hex(3)}"
        """Of its own, so that tests can share a running copy."""

    def sign_up(self, address: str = "/sign-up") -> None:
        self.page.goto(address)
        self.page.get_by_label("Your name").fill(self.name)
        self.page.get_by_label("Password").fill("correct horse")
        self.page.get_by_role("button", name="Sign up").click()
        self.page.wait_for_url(re.compile("/chats"))

    def new_chat(self, friend: str = "") -> str:
        """Start a chat and return its address."""
        self.page.goto("/chats/new")
        self.page.get_by_label("With whom?").fill(friend)
        self.page.get_by_role("button", name="Start the chat").click()
        self.page.wait_for_url(re.compile("/chats/[0-9a-f]{32}$"))
        return self.page.url

    def invite_link(self) -> str:
        self.page.get_by_role("button", name="Add people").click()
        link = self.page.get_by_label("Anybody else, by link").input_value()
        self.page.get_by_role("button", name="Close").click()
        return link

    def record(self, seconds: int) -> float:
        """Press Record, let the microphone hear so many seconds, and stop; gives the seconds that all of it took."""
        began = time.monotonic()
        self.page.get_by_role("button", name="Record", exact=True).click()
        self.wait_until_recorded(seconds)
        self.page.get_by_role("button", name="Stop and listen").click()
        expect(self.page.locator("#review voice-player")).to_be_visible()
        return time.monotonic() - began

    def wait_until_recorded(self, seconds: int) -> None:
        """Wait until the timer shows so many seconds, or more."""

        def recorded() -> bool:
            minutes, _, rest = self.page.locator("#timer").inner_text().partition(":")
            return int(minutes or 0) * 60 + int(rest or 0) >= seconds

        wait_until(recorded, f"the timer did not come to {seconds} s")

    def upload(self, recording: Path | FilePayload) -> None:
        self.page.set_input_files("#audio-file", recording)
        expect(self.page.locator("#review voice-player")).to_be_visible()

    def attach(self, picture: Path | FilePayload) -> None:
        self.page.set_input_files("#picture-file", picture)
        expect(self.page.locator("#attached")).to_be_visible()

    def send(self) -> Locator:
        """Press Send and return the message that appears."""
        before = self.messages.count()
        self.page.locator("#send:visible, #send-picture:visible").click()
        expect(self.messages).to_have_count(before + 1)
        # The message may come by the stream of events before the answer does, until which nothing else can be written.
        expect(self.page.locator("#composer")).not_to_have_attribute("data-state", "sending")
        return self.messages.last

    @property
    def messages(self) -> Locator:
        return self.page.locator("#messages > li")

    def transcript(self, number: int = -1) -> Locator:
        """The finished transcript of a message."""
        return self.messages.nth(number).locator("[data-transcript=ok]")

    def stay(self) -> None:
        """Remember this very page; `stayed` tells whether it was ever loaded again."""
        self.page.evaluate("window.stayed = true")

    @property
    def stayed(self) -> bool:
        return bool(self.page.evaluate("window.stayed === true"))


def file(name: str, data: bytes, kind: str = "audio/webm") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


def shown(image: Locator) -> bool:
    """Whether a picture was really loaded and painted."""
    expect(image).to_be_visible()
    image.scroll_into_view_if_needed()
    return bool(image.evaluate("async (image) => { await image.decode(); return image.naturalWidth > 0; }"))


def word_error_rate(heard: str | list[str], spoken: str | list[str]) -> float:
    """Of words alone: punctuation and case are a matter of style."""
    return float(wer(_words(spoken), _words(heard)))


def _words(text: str | list[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    return [" ".join(re.findall(r"[a-z0-9']+", each.lower())) for each in texts]
