"""Knocking at what is no Pulsar, or none that answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pulsartasks.brokers.pulsar import PulsarSettings, diagnosis
from pulsartasks.brokers.pulsar.diagnosis import find_trouble
from pulsartasks.errors import AuthenticationError, BrokerUnavailableError
from tests.services import LOOPBACK, free_ports

CONNECTED = b"\0\0\0\6\0\0\0\2\x08\x03"
"""What a broker without TLS says to whom it lets in."""


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something that accepts connections, does `answer` and hangs up; gives its port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    with socket.create_server((LOOPBACK, 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def saying(said: bytes) -> Callable[[socket.socket], None]:
    def say(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(said)

    return say


def trouble(port: int, scheme: str = "pulsar") -> object:
    return find_trouble(PulsarSettings.parse(f"{scheme}://{LOOPBACK}:{port}", {}))


@pytest.mark.parametrize("scheme", ["pulsar", "pulsar+ssl"])
@pytest.mark.parametrize("said", [b"", b"\0\0\0\1", b"HTTP/1.1 400 Bad Request\r\n\r\n", CONNECTED])
def test_who_hangs_up_or_speaks_otherwise_is_not_accused(said: bytes, scheme: str) -> None:
    with listening(saying(said)) as port:
        found = trouble(port, scheme)

    assert found is None or (said, scheme) == (CONNECTED, "pulsar+ssl")


def test_who_does_not_answer_is_left_alone_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.1)

    def wait(connection: socket.socket) -> None:
        while connection.recv(1024):
            pass

    with listening(wait) as port:
        assert trouble(port) is None


def test_nobody_at_the_address_is_told_with_the_address() -> None:
    [port] = free_ports(1)

    found = trouble(port)

    assert isinstance(found, BrokerUnavailableError)
    assert f"{LOOPBACK}:{port} cannot be reached" in str(found)


def test_first_host_that_answers_counts() -> None:
    [nobody] = free_ports(1)
    with listening(saying(CONNECTED)) as port:
        settings = PulsarSettings.parse(f"pulsar://{LOOPBACK}:{nobody},{LOOPBACK}:{port}", {})

        assert find_trouble(settings) is None


def test_authority_file_without_a_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("words")
    settings = PulsarSettings.parse(f"pulsar+ssl://{LOOPBACK}:1?tls_ca={tmp_path / 'ca.pem'}", {})

    assert "tls_ca" in str(find_trouble(settings))


def test_token_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff")
    settings = PulsarSettings.parse(f"pulsar://{LOOPBACK}:1?token_file={tmp_path / 'token'}", {})

    found = find_trouble(settings)

    assert isinstance(found, AuthenticationError)
    assert f"the token_file {tmp_path / 'token'} cannot be read" in str(found)
