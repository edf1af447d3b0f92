"""BabbleBox over TLS with the settings of production, while certificates and tokens are replaced under it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from apps.demo import __file__ as demo
from apps.events import MessageCreated, app, message_created, transcribed
from pulsartasks import AuthenticationError, AuthorizationError, BrokerUnavailableError
from pulsartasks.brokers.base import Broker
from pulsartasks.catalog import CRASHES
from tests.apps.production import HOST, NAMESPACE, ROLES, Person, Production
from tests.secure import Authority, PulsarProxy, SecurePulsarServer, TokenKey, presented_by
from tests.services import LOOPBACK, wait_until

RECORDING = Path(demo).with_name("recording.webm")
PAUSE = 0.2
"""Seconds between two messages of the load."""


@pytest.fixture(scope="module")
def production(
    secure_pulsar: SecurePulsarServer,
    whisper_weights: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Production]:
    settings = {"WHISPER_ENGINE": "faster", "WHISPER_MODEL": str(whisper_weights("faster"))}
    running = Production(tmp_path_factory.mktemp("production"), secure_pulsar, settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()


Client = Callable[..., AbstractContextManager[Broker]]


@pytest.fixture
def client(production: Production, monkeypatch: pytest.MonkeyPatch) -> Client:
    """While a block runs, this process is a client of BabbleBox's topics in a role, with some settings changed."""
    monkeypatch.setenv("PULSARTASKS_NAMESPACE", NAMESPACE)

    def connected(role: str, *, host: str = HOST, **changed: object) -> AbstractContextManager[Broker]:
        env = production.environment(role)
        settings = {name: env[f"PULSARTASKS_{name.upper()}"] for name in ("admin_url", "tls_ca", "token_file")}
        url = env["PULSARTASKS_BROKER"].replace(HOST, host)
        return app.on_broker(f"{url}?{urlencode({**settings, **changed})}")

    return connected


# Who is let in by the proxy, and for what


def test_client_that_does_not_trust_the_root_is_told(client: Client, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")

    with (
        client("web", tls_ca=stranger.certificate),
        pytest.raises(BrokerUnavailableError, match="certificate is not trusted by tls_ca="),
    ):
        message_created.publish(MessageCreated("m", "c"))


def test_name_that_is_not_in_the_certificate_is_told(client: Client) -> None:
    with (
        client("web", host=LOOPBACK),
        pytest.raises(BrokerUnavailableError, match=f"certificate is not for the host name '{LOOPBACK}'"),
    ):
        message_created.publish(MessageCreated("m", "c"))


def test_token_of_another_key_is_told(client: Client, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TokenKey(tmp_path / "other").token("web"))

    with client("web", token_file=token), pytest.raises(AuthenticationError, match="does not accept the token"):
        message_created.publish(MessageCreated("m", "c"))


def test_role_does_what_it_is_for_and_no_more(client: Client) -> None:
    refused = "the role '{}' has no permission"

    with client("keda") as broker:
        state = broker.inspect(message_created.full_name)
        assert state is not None
        assert set(state.subscriptions) == {"transcribe", "images"}
        with pytest.raises(AuthorizationError, match=refused.format("keda")):
            message_created.publish(MessageCreated("m", "c"))
    with client("beat"), pytest.raises(AuthorizationError, match=refused.format("beat")):
        transcribed.tail()
    with client("web"), pytest.raises(AuthorizationError, match=refused.format("web")):
        app.read(app.own_topic(CRASHES))


# What it does meanwhile


@pytest.mark.slow
def test_recording_and_picture_become_what_people_see(production: Production, picture: Path) -> None:
    person = Person(production.url, "Ada")
    person.sign_up()
    chat = person.new_chat()

    with person.stream(chat) as lines:
        message = person.send(chat, audio=RECORDING, picture=picture)
        assert next(line for line in lines if line.startswith("data:") and message in line)

    def finished() -> bool:
        page = person.page(chat)
        return all(part in page for part in ('data-transcript="ok"', "Voice card: ", 'alt="Picture from'))

    wait_until(finished, "the message was not finished")
    assert production.logged("thread_changes.interrupted", part="web") == []


@pytest.mark.slow
def test_nothing_is_lost_while_certificates_and_tokens_are_replaced(
    production: Production, secure_pulsar: SecurePulsarServer, picture: Path
) -> None:
    proxy, servers = production.proxy, (production.proxy, secure_pulsar)
    person = Person(production.url, "Grace")
    person.sign_up()
    with _load(person, person.new_chat(), picture) as sent:
        wait_until(lambda: _finished(production, sent) > 0, "no message was finished")

        # While connections are open, and for those that come
        before = _presented(secure_pulsar, *servers)
        for server in servers:
            server.certificate.renew()
        wait_until(lambda: not before & _presented(secure_pulsar, *servers), "a former certificate is still presented")
        renewed = len(sent)
        wait_until(lambda: _finished(production, sent[renewed:]) > 0, "no message was finished after the renewal")

        # All connections end, those who come back have a token that has expired, and get another one
        proxy.stop(kill=True)
        for role in ROLES:
            production.write_token(role, valid_for=-60)
        proxy.start()
        for part in ("chat", "images", "transcribe"):
            wait_until(partial(_refused, production, part), f"{part} was not refused")
        for role in ROLES:
            production.write_token(role)
        renewed = len(sent)
        wait_until(lambda: _finished(production, sent[renewed:]) > 0, "no message was finished with the new tokens")

    wait_until(lambda: _finished(production, sent) == len(sent), "a message was not finished")
    assert Counter(production.picture_states(sent).values()) == {"ok": len(sent)}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@contextmanager
def _load(person: Person, chat: str, picture: Path) -> Iterator[list[str]]:
    """Sends one picture after the other until the block ends; gives the ids of those that were taken."""
    sent: list[str] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(PAUSE):
            sent.append(person.send(chat, picture=picture))

    thread = threading.Thread(target=send, name="load")
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


def _finished(production: Production, sent: list[str]) -> int:
    return sum(state == "ok" for state in production.picture_states(sent).values())


def _refused(production: Production, part: str) -> bool:
    return any("expired at" in line["error"] for line in production.logged("consumer.failed", part=part))


def _presented(pulsar: SecurePulsarServer, *servers: PulsarProxy | SecurePulsarServer) -> set[bytes]:
    urls = [url for server in servers for url in (server.service_url, server.admin_url)]
    return {presented_by(url, pulsar.authority) for url in urls}
