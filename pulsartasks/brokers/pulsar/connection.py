"""The clients of one process: made when first needed, never used across a fork, ended within a bound."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pulsar

from pulsartasks.brokers.pulsar.diagnosis import WrongSettingError, find_trouble, missing_permission
from pulsartasks.brokers.pulsar.errors import translated
from pulsartasks.brokers.pulsar.settings import PulsarSettings
from pulsartasks.errors import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
)

CLOSE_TIMEOUT = 5.0
"""Seconds that closing one thing may take; a broker that does not answer is left to find out by itself."""
_CLOSE_TIMEOUT_AGAIN = 0.2
"""The same for the next thing, when it has just not answered."""
_SILENT_FOR = 10.0
"""Seconds for which a broker that did not answer is believed to answer no more."""

MOVES_FOR = 10.0
"""Seconds for which a topic may be on the move before that is an error."""
_PAUSE = 0.1
_MOVING = (pulsar.BrokerMetadataError, pulsar.BrokerPersistenceError, pulsar.ServiceUnitNotReady)
"""What the broker answers while somebody else makes, moves or loads the topic. The client tries some of it again by
itself, but not in a look-up."""

LISTEN_EVERY = 10.0
"""Seconds between two looks for why a connection was lost."""

_Result = TypeVar("_Result")


class Connection:
    """Two clients, since a publish that the broker rejects shakes its client's connection, and all consumers on it."""

    def __init__(self, settings: PulsarSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._handles: set[Any] = set()
        self._ending: set[threading.Thread] = set()
        self._pid: int | None = None
        self._closed = False
        self._let_in = False
        self._silent_until = 0.0
        self._listen_again = 0.0

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def usable(self) -> bool:
        return not self._closed and not self.inherited

    @property
    def inherited(self) -> bool:
        """Whether this process was forked off the one that opened it, so that no call into the client would return."""
        return self._pid is not None and self._pid != os.getpid()

    def publishing(self) -> Any:
        """The `pulsar.Client` that publishes."""
        return self._client("publishing")

    def consuming(self) -> Any:
        """The `pulsar.Client` that consumes, reads and looks up."""
        return self._client("consuming")

    @property
    def encryption(self) -> dict[str, Any]:
        """What a producer must be told to encrypt; nothing if it is not to."""
        name = self.settings.encryption_key
        return {"encryption_key": name, **self._key_reader()} if name else {}

    @property
    def decryption(self) -> dict[str, Any]:
        """What a consumer or reader must be told to decrypt.

        What it cannot decrypt it gets as it is, and a consumer gives it back: kept from us by the client, it would
        for ever take up the room of others, and a queue full of it receives nothing more.
        """
        bearing = {"crypto_failure_action": pulsar.ConsumerCryptoFailureAction.CONSUME}
        return {**bearing, **self._key_reader()} if self.settings.encryption_private_key else bearing

    @contextmanager
    def explaining(self, doing: str) -> Iterator[None]:
        """As `translated`; and if the broker could not be reached or forbids it, the error names the cause."""
        try:
            with translated(doing):
                yield
        except AuthorizationError as error:
            raise missing_permission(self.settings, doing) from error.__cause__
        except (AuthenticationError, BrokerUnavailableError) as error:
            # Without a cause it is what `_knock` found.
            trouble = find_trouble(self.settings) if error.__cause__ else None
            if trouble is None:
                raise
            raise type(trouble)(f"could not {doing}: {trouble}") from error.__cause__

    def ask(self, doing: str, question: Callable[[Any], _Result]) -> _Result:
        """What `question` gets from the client that consumes; asked again while the topic is on the move.

        Its errors are `explaining`.
        """
        deadline = time.monotonic() + MOVES_FOR
        while True:
            with self.explaining(doing):
                try:
                    return question(self.consuming())
                except _MOVING:
                    if time.monotonic() > deadline:
                        raise
            time.sleep(_PAUSE)

    def lost(self) -> None:
        """Told of a lost connection, now and then asks whether it is our credentials that the broker refuses now.

        The client goes on trying in silence, so that new ones in a token file are all that is needed.

        Raises:
            AuthenticationError: it is.
        """
        with self._lock:
            if time.monotonic() < self._listen_again:
                return
            self._listen_again = time.monotonic() + LISTEN_EVERY
        trouble = find_trouble(self.settings)
        if isinstance(trouble, AuthenticationError):
            raise trouble

    def check(self) -> None:
        """Refuse to go on after `close`, and in a forked child, where a call into the client would hang for ever."""
        if self.inherited:
            raise BrokerError(
                f"this broker was opened by process {self._pid} and cannot be used after a fork; "
                "open one in the child, or fork before the first publish or subscribe"
            )
        if self._closed:
            raise ClosedError("the broker was closed")

    def keep(self, handle: Any) -> Any:
        """Hold a producer, consumer or reader until `forget`, so that a forked child does not destroy its copy."""
        with self._lock:
            self._handles.add(handle)
        return handle

    def forget(self, handle: Any) -> None:
        with self._lock:
            self._handles.discard(handle)

    def refuse(self) -> None:
        """Let nothing begin any more that is not to be closed again at once."""
        self._closed = True

    def close(self) -> None:
        """End the clients; what still waits for them is told so. Idempotent, and harmless in a forked child."""
        if self.inherited:
            return
        with self._lock:
            self._closed = True
            clients, self._clients = self._clients, {}
        self.end(*(client.close for client in clients.values()))
        self._cut_off(clients.values())
        with self._lock:
            self._handles.clear()
        if clients:
            _make_mortal(self._handles)

    def end(self, *closings: Callable[[], object]) -> None:
        """Close things beside each other, for `CLOSE_TIMEOUT` at most, since some hang when the broker is away.

        What is closed one after the other, as a worker's consumers, does not wait that long each time.
        """
        began = time.monotonic()
        patient = began >= self._silent_until
        deadline = began + (CLOSE_TIMEOUT if patient else _CLOSE_TIMEOUT_AGAIN)
        threads = []
        for closing in closings:
            thread = threading.Thread(target=self._run, args=(closing,), name="pulsartasks-close", daemon=True)
            try:
                thread.start()
                threads.append(thread)
            except RuntimeError:  # the interpreter ends: from Python 3.12 on no thread starts any more
                self._run(closing)
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if not any(thread.is_alive() for thread in threads):
            self._silent_until = 0.0
        elif patient:  # else it may just have been slow
            self._silent_until = time.monotonic() + _SILENT_FOR

    def _run(self, closing: Callable[[], object]) -> None:
        here = threading.current_thread()
        self._ending.add(here)
        try:
            with suppress(pulsar.PulsarException, ValueError):  # closed already, or the connection is gone
                closing()
        finally:
            self._ending.discard(here)

    def _cut_off(self, clients: Collection[Any]) -> None:
        """Let no thread go on waiting for an answer of the broker.

        One that does so while the interpreter ends would abort the process: Python ends it by an exception as soon as
        it comes back from the client, and that exception may not leave C++ code.
        """
        if waiting := self._ending - {threading.current_thread()}:
            for client in clients:
                client.shutdown()
            for thread in waiting:
                thread.join(1.0)

    def _client(self, role: str) -> Any:
        self.check()
        if not self._let_in:
            self._knock()
        with self._lock:
            if self._closed:
                raise ClosedError("the broker was closed")
            if role not in self._clients:
                if self._pid is None:
                    self._pid = os.getpid()
                    _make_immortal(self._handles)
                self._clients[role] = self._open()
                self._handles.add(self._clients[role])
            return self._clients[role]

    def _key_reader(self) -> dict[str, Any]:
        settings = self.settings
        reader = pulsar.CryptoKeyReader(settings.encryption_public_key or "", settings.encryption_private_key or "")
        return {"crypto_key_reader": reader}

    def _knock(self) -> None:
        """Before the first connection: the client would take half a minute to say less of refused credentials."""
        trouble = find_trouble(self.settings)
        if isinstance(trouble, (AuthenticationError, WrongSettingError)):
            raise trouble
        self._let_in = True

    def _open(self) -> Any:
        settings = self.settings
        with translated(f"open {settings.service_url}"):
            return pulsar.Client(
                settings.service_url,
                authentication=_authentication(settings),
                operation_timeout_seconds=settings.operation_timeout,
                tls_trust_certs_file_path=settings.tls_ca,
                tls_validate_hostname=settings.tls_validate_hostname,
                tls_certificate_file_path=settings.tls_cert,
                tls_private_key_file_path=settings.tls_key,
                # A Python logger makes the client's threads fight for the GIL and aborts the process at exit; the
                # default one and ConsoleLogger write to stdout.
                logger=pulsar.FileLogger(pulsar.LoggerLevel.Warn, settings.client_log),
            )


def _authentication(settings: PulsarSettings) -> Any:
    if settings.token_file:
        return pulsar.AuthenticationToken(settings.read_token)  # asked for every connection
    if settings.token:
        return pulsar.AuthenticationToken(settings.token)
    if settings.tls_cert:
        return pulsar.AuthenticationTLS(settings.tls_cert, settings.tls_key)
    return None


# In a forked child even the destructor of a client hangs, for it waits for threads that were not forked
# (https://github.com/apache/pulsar-client-python/issues/127), and the interpreter runs destructors at exit. So a child
# must never free what it inherited: the set that holds it has one reference too many until the clients are closed.


def _make_immortal(handles: set[Any]) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handles))


def _make_mortal(handles: set[Any]) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(handles))
