"""An open page outlives everything behind it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.apps.browser.visitor import Visitor
from tests.apps.running import RunningBabbleBox
from tests.services import Speech

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("babblebox", ["embedded"], indirect=True)]


def test_page_catches_up_after_its_connection_was_gone(visit: Callable[..., Visitor], speech: Speech) -> None:
    ada, grace = visit("ada"), visit("grace")
    ada.sign_up()
    ada.new_chat()
    grace.sign_up(ada.invite_link())
    grace.stay()

    grace.page.context.set_offline(True)
    ada.upload(speech.clips[1].path)
    ada.send()
    expect(ada.transcript()).to_be_visible()
    grace.page.context.set_offline(False)

    expect(grace.transcript()).to_be_visible()
    expect(grace.messages).to_have_count(1)
    assert grace.stayed


def test_page_goes_on_after_babblebox_was_started_again(
    visit: Callable[..., Visitor], babblebox: RunningBabbleBox, speech: Speech
) -> None:
    ada = visit("ada")
    ada.sign_up()
    ada.new_chat()
    ada.stay()

    with babblebox.worker_suspended("transcribe"):
        ada.upload(speech.clips[1].path)
        ada.send()
        babblebox.stop(signal.SIGINT)
    babblebox.start()

    expect(ada.transcript()).to_be_visible()
    assert ada.stayed
    ada.upload(speech.clips[4].path)
    ada.send()
    expect(ada.transcript()).to_be_visible()
