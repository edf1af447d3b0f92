"""Real browsers in front of a running BabbleBox, on the embedded broker and on Pulsar."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.apps.browser.visitor import Visitor
from tests.apps.running import RunningBabbleBox
from tests.services import PostgresServer, PulsarServer, S3Server, Speech

FAKE_DEVICE = "--use-fake-device-for-media-stream"
YES_TO_MICROPHONE = "--use-fake-ui-for-media-stream"

expect.set_options(timeout=60_000)  # two cores, and a speech model on them

MakeBrowser = Callable[..., Browser]


@pytest.fixture(scope="session", params=["embedded", pytest.param("pulsar", marks=pytest.mark.pulsar)])
def babblebox(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, whisper_weights: Callable[[str], Path]
) -> Iterator[RunningBabbleBox]:
    """openai-whisper on the embedded broker and a folder; faster-whisper on real servers."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "embedded":
            env = {"WHISPER_ENGINE": "openai", "WHISPER_MODEL": str(whisper_weights("openai"))}
        else:
            pulsar: PulsarServer = request.getfixturevalue("pulsar_server")
            s3: S3Server = request.getfixturevalue("s3_server")
            postgres: PostgresServer = request.getfixturevalue("postgres_server")
            for name, value in s3.environment.items():
                patch.setenv(name, value)
            env = {
                "WHISPER_ENGINE": "faster",
                "WHISPER_MODEL": str(whisper_weights("faster")),
                "PULSARTASKS_BROKER": pulsar.service_url,
                "BLOB_STORE": s3.store_url("browser"),
                "DATABASE_URL": postgres.new_database(),
            }
        running = RunningBabbleBox(tmp_path_factory.mktemp(f"babblebox-{request.param}"), env)
        running.start()
        yield running
        running.stop()


@pytest.fixture(scope="module")
def playwright_session() -> Iterator[Playwright]:
    # No longer than these tests run: meanwhile an event loop counts as running in this thread, and no other may.
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def make_browser(playwright_session: Playwright, chromium: Path) -> Iterator[MakeBrowser]:
    """Starts a Chromium with more arguments."""
    with ExitStack() as stack:

        def make(*arguments: str) -> Browser:
            browser = playwright_session.chromium.launch(
                executable_path=str(chromium), args=["--no-sandbox", *arguments], timeout=120_000
            )
            stack.callback(browser.close)
            return browser

        yield make


@pytest.fixture(scope="session")
def spoken(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the fake microphone hears: a second of silence, a LibriVox clip, a second of silence."""
    path = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    with wave.open(str(speech.clips[0].path), "rb") as clip, wave.open(str(path), "wb") as out:
        out.setparams(clip.getparams())
        silence = b"\0" * clip.getframerate() * clip.getsampwidth() * clip.getnchannels()
        out.writeframes(silence + clip.readframes(clip.getnframes()) + silence)
    return path


@pytest.fixture(scope="module")
def browser(make_browser: MakeBrowser, spoken: Path) -> Browser:
    """A browser whose microphone hears the clip once each time it is opened."""
    return make_browser(FAKE_DEVICE, YES_TO_MICROPHONE, f"--use-file-for-fake-audio-capture={spoken}%noloop")


@pytest.fixture
def visit(browser: Browser, babblebox: RunningBabbleBox) -> Iterator[Callable[..., Visitor]]:
    """Opens BabbleBox in a browser context of its own; page errors and refused scripts fail the test."""
    contexts: list[BrowserContext] = []
    trouble: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda line: trouble.append(line.text) if "Content Security Policy" in line.text else None)

    def open_page(name: str, where: Browser = browser, width: int = 1100, height: int = 800) -> Visitor:
        context = where.new_context(viewport={"width": width, "height": height}, base_url=babblebox.url)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        watch(page)
        return Visitor(page, name)

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def ada(visit: Callable[..., Visitor]) -> Visitor:
    """Somebody who has signed up and looks at a chat of her own."""
    ada = visit("ada")
    ada.sign_up()
    ada.new_chat()
    return ada
