"""The network that the fault suite spoils."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy
from tests.services import LOOPBACK


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that gives back what it gets; its port."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def answer(end: socket.socket) -> None:
            with end:
                while data := end.recv(1000):
                    end.sendall(data)

        def serve() -> None:
            while True:
                try:
                    end, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=[end], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    proxy = Proxy(echo)
    yield proxy
    proxy.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((LOOPBACK, proxy.port), timeout=5)


def test_what_is_sent_comes_back_and_addresses_of_the_broker_lead_through_the_proxy(echo: int, proxy: Proxy) -> None:
    with connect(proxy) as end:
        end.sendall(f"look at {LOOPBACK}:{echo}".encode())

        assert end.recv(1000) == f"look at {LOOPBACK}:{proxy.port}".encode()


def test_cut_ends_connections_and_lets_nobody_in_until_it_is_restored(proxy: Proxy) -> None:
    with connect(proxy) as end:
        end.sendall(b"hello")
        assert end.recv(1000) == b"hello"
        proxy.cut()
        assert end.recv(1000) == b""
    with connect(proxy) as refused:
        assert refused.recv(1000) == b""
    proxy.restore()
    with connect(proxy) as end:
        end.sendall(b"again")
        assert end.recv(1000) == b"again"


def test_what_is_held_up_arrives_when_it_is_restored(proxy: Proxy) -> None:
    with connect(proxy) as end:
        proxy.hold()
        end.sendall(b"late")
        end.settimeout(0.1)
        with pytest.raises(TimeoutError):
            end.recv(1000)
        proxy.restore()
        end.settimeout(5)
        assert end.recv(1000) == b"late"
