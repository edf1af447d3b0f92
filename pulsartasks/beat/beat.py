"""The loop of ``pulsartasks beat``: stand by, be elected, send what is due, and notice when another one was elected."""

from __future__ import annotations

import threading
from contextlib import closing

import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.beat.leadership import Leadership
from pulsartasks.beat.term import Term
from pulsartasks.errors import (
    AuthenticationError,
    AuthorizationError,
    ConfigurationError,
    SubscriptionBusyError,
)
from pulsartasks.results.base import text_of
from pulsartasks.retry import backoff

STAND_BY = 1.0
"""Seconds between two tries to be elected."""
LOOK_EVERY = 0.5
"""Seconds after which a leader looks whether it still leads, and whether it is to stop."""

_FATAL = (ConfigurationError, AuthenticationError, AuthorizationError)

_log = structlog.get_logger("pulsartasks")


class Beat:
    """One of any number of copies, of which one at a time sends what `app.scheduled` says."""

    def __init__(self, app: PulsarTasks) -> None:
        self._app = app
        self._leading = threading.Event()
        self._standing_by = threading.Event()

    @property
    def leading(self) -> bool:
        """Whether this copy is the one that sends."""
        return self._leading.is_set()

    @property
    def ready(self) -> bool:
        """Whether it sends, or another one does and it stands by."""
        return self.leading or self._standing_by.is_set()

    def run(self, stop: threading.Event) -> None:
        """Take part until `stop` is set; an absent broker is waited for, unless it refuses from the beginning.

        Raises:
            ConfigurationError, AuthenticationError, AuthorizationError: this copy can never lead.
        """
        tries, let_in = 0, False
        while not stop.is_set():
            try:
                with closing(Leadership.take(self._app)) as leadership:
                    tries, let_in = 0, True
                    self._lead(leadership, stop)
            except SubscriptionBusyError:
                if not self._standing_by.is_set():
                    _log.info("beat.stood_by")
                tries, let_in = 0, True
                self._standing_by.set()
                stop.wait(STAND_BY)
            except Exception as error:  # a middleware's or our own bug must not end it for good either
                if isinstance(error, _FATAL) and not let_in:
                    raise
                _log.warning("beat.interrupted", error=text_of(error, repr))
                self._standing_by.clear()
                stop.wait(backoff(tries, factor=0.2, maximum=10.0))
                tries += 1
        self._standing_by.clear()

    def _lead(self, leadership: Leadership, stop: threading.Event) -> None:
        with closing(Term(self._app, leadership)) as term:
            _log.info("beat.elected", entries=len(self._app.scheduled), in_doubt=len(leadership.record.sending))
            self._leading.set()
            self._standing_by.clear()
            try:
                while not stop.is_set():
                    leadership.watch(min(term.round(), LOOK_EVERY))
            finally:
                self._leading.clear()
