"""The network between a client and Pulsar, of which one can cut, slow down and hold up all that passes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from tests.services import LOOPBACK

_CHUNK = 65_536


class Proxy:
    """Listens on a port of its own and passes everything on to `port`, both on loopback."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self._broker = port
        self.port: int = self._listener.getsockname()[1]
        # The broker tells its clients where topics are, which would lead them past the proxy.
        self._truth = f"{LOOPBACK}:{port}".encode()
        self._lie = f"{LOOPBACK}:{self.port}".encode()
        assert len(self._truth) == len(self._lie)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._cut = False
        self._open = threading.Event()
        self._open.set()
        self.delay = 0.0
        """Seconds by which each piece of data is late."""
        self.passed = 0
        """Bytes that came from the broker."""
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """End all connections, losing what is on its way, and let nobody in."""
        with self._lock:
            self._cut = True
            for end in self._sockets:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Pass nothing on, without a word to anybody."""
        self._open.clear()

    def restore(self) -> None:
        """Be a good network again."""
        self._cut, self.delay = False, 0.0
        self._open.set()

    def close(self) -> None:
        self.cut()
        self._open.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=[client], name="proxy", daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client:
            try:
                broker = socket.create_connection((LOOPBACK, self._broker), timeout=5)
            except OSError:
                return
            broker.settimeout(None)
            with broker:
                with self._lock:
                    if self._cut:
                        return
                    self._sockets |= {client, broker}
                back = threading.Thread(target=self._pass, args=[broker, client], name="proxy", daemon=True)
                back.start()
                self._pass(client, broker)
                back.join()
                with self._lock:
                    self._sockets -= {client, broker}

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                self._open.wait()
                if self.delay:
                    time.sleep(self.delay)
                target.sendall(data.replace(self._truth, self._lie))
                self.passed += len(data) if source.getpeername()[1] == self._broker else 0
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
