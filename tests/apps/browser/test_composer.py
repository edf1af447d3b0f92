"""The composer keeps what was made until it is sent, however it is used, and says what is in the way."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import FilePayload, Route, expect

from tests.apps.browser.conftest import FAKE_DEVICE, MakeBrowser
from tests.apps.browser.visitor import Visitor, file
from tests.services import Speech, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("babblebox", ["embedded"], indirect=True)]

Visit = Callable[..., Visitor]


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


def test_what_is_being_sent_cannot_be_changed(ada: Visitor, speech: Speech) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    ada.page.route("**/messages", hold, times=1)
    ada.upload(speech.clips[0].path)
    ada.page.locator("#send").click()

    expect(ada.page.locator("#picture-file-2")).to_be_disabled()
    wait_until(lambda: bool(ada.page.title() and held), "nothing was sent")  # only questions hear of it
    held[0].continue_()
    expect(ada.page.locator("#picture-file")).to_be_enabled()
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
    ada.wait_until_recorded(6)  # so that it plays for long enough to be seen playing
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
    ada.wait_until_recorded(1)

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


def test_recording_can_be_sent_without_listening_first(ada: Visitor) -> None:
    ada.page.get_by_role("button", name="Record", exact=True).click()
    ada.wait_until_recorded(1)

    ada.page.get_by_role("button", name="Send the recording now").click()

    expect(ada.messages).to_have_count(1)
    expect(ada.page.locator("#composer")).to_have_attribute("data-state", "idle")


def test_recording_survives_a_session_that_ended(ada: Visitor, speech: Speech) -> None:
    ada.upload(speech.clips[1].path)
    ada.page.context.clear_cookies()

    ada.page.locator("#send").click()
    expect(ada.page.get_by_role("alert")).to_contain_text("Log in in another tab")

    other = Visitor(ada.page.context.new_page(), "ada")
    other.page.goto("/log-in")
    other.page.get_by_label("Your name").fill(ada.name)
    other.page.get_by_label("Password").fill("correct horse")
    other.page.get_by_role("button", name="Log in").click()
    other.page.wait_for_url("**/chats")
    ada.page.get_by_role("button", name="Send again").click()
    expect(ada.messages).to_have_count(1)


def test_end_of_the_thread_stays_in_view_while_it_grows(ada: Visitor, speech: Speech) -> None:
    for _ in range(4):
        ada.upload(speech.clips[1].path)
        ada.send()
    expect(ada.messages.last.locator(".card img")).to_be_visible()

    ada.upload(speech.clips[1].path)
    ada.page.route("**/messages", lambda route: route.abort(), times=1)
    ada.page.locator("#send").click()
    expect(ada.page.get_by_role("alert")).to_be_visible()

    expect(ada.messages.last.locator(".card img")).to_be_in_viewport()
    room = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight"
    assert ada.page.locator("#bubbles").evaluate(room) < 2
