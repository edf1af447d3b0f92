"""A topic that every worker of an app knows by heart: read from some instant on before it consumes, then followed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery, Reader
from pulsartasks.errors import AuthenticationError, AuthorizationError, ClosedError, PulsarTasksError
from pulsartasks.message import Publication
from pulsartasks.results.base import text_of
from pulsartasks.retry import backoff
from pulsartasks.topics import KEEPER, short_name

FOLLOW = 1.0
"""Seconds after which a follower without news looks after other things."""

_log = structlog.get_logger("pulsartasks")


class Notices:
    """One such topic.

    Args:
        topic: its full name. Its keeper, a subscription that nobody reads, holds what is on it until `trim`.
        kept_for: seconds that a notice counts.
        learn: is told each notice, in the topic's order; after a reconnect perhaps again.
        before: called before anything is read, until it succeeds.
        idle: called when all has been read, and about once a second from then on.
    """

    def __init__(
        self,
        app: PulsarTasks,
        topic: str,
        *,
        kept_for: float,
        learn: Callable[[Delivery], None],
        before: Callable[[], None] = lambda: None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.topic = topic
        self._app = app
        self._kept_for = kept_for
        self._learn = learn
        self._before = before
        self._idle = idle
        self._refusal: PulsarTasksError | None = None
        self._known = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"pulsartasks-{short_name(topic)}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Follow no more. Returns at once."""
        self._stopping.set()
        self._known.set()

    def wait_until_known(self) -> None:
        """Returns when all that was there has been read, or at `stop`.

        Raises:
            AuthenticationError, AuthorizationError: it must not be read.
        """
        self._known.wait()
        if self._refusal is not None:
            raise self._refusal

    def publish(self, value: bytes) -> None:
        """Add a notice; confirmed when this returns.

        Raises:
            BrokerError: the broker did not take it.
        """
        self._app.declare(self.topic)
        self._app.broker.publish(Publication(self.topic, value))

    def trim(self) -> None:
        """Let go of what does not count any more."""
        self._app.declare(self.topic)
        self._app.broker.trim(self.topic, KEEPER, before=self._app.clock.now() - self._kept_for)

    def _follow(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            try:
                self._before()
                if not self._stopping.is_set():
                    self._app.declare(self.topic)
                    self._read(self._app.broker.read(self.topic, since=0.0))  # what is older was let go
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - without this thread a worker would wait for ever, in silence
                if self._stopping.is_set():
                    return
                if isinstance(error, AuthenticationError | AuthorizationError) and not self._known.is_set():
                    self._refusal = error
                    self._known.set()
                    return
                _log.warning("notices.unread", topic=self.topic, error=text_of(error))
                self._stopping.wait(backoff(tries, factor=0.2, maximum=10.0))
                tries += 1

    def _read(self, reader: Reader) -> None:
        try:
            while not self._stopping.is_set():
                delivery = reader.receive(FOLLOW if self._known.is_set() else 0.0)
                if delivery is not None:
                    self._learn(delivery)
                else:
                    self._idle()
                    self._known.set()
        finally:
            with suppress(PulsarTasksError):
                reader.close()
