"""What a worker knows of revoked tasks, and the gate at which they and those that have expired end."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.clock import Clock
from pulsartasks.errors import UnreadableMessageError
from pulsartasks.message import Request, read_int
from pulsartasks.middleware.base import Execute, Middleware
from pulsartasks.outcome import Outcome, Revoked
from pulsartasks.revocation import KEPT, Notice
from pulsartasks.worker.notices import Notices
from pulsartasks.worker.run import first_published

MOST = 500_000
"""Notices that a process remembers, in some 100 MB; beyond that the oldest are forgotten."""
RENEW = 0.8
"""Part of a notice's time on the topic after which one that must outlive it is published again."""

Known = tuple[float, float]
"""Until when a notice counts, and when it was published."""

_log = structlog.get_logger("pulsartasks")


class Gate(Middleware):
    """Lets no attempt through of a task that was revoked or has expired.

    Args:
        revoked: ids of tasks.
        expires: seconds from publication after which tasks of a name expire whose messages do not say so themselves.
    """

    def __init__(self, revoked: Container[str], expires: Mapping[str, float], clock: Clock) -> None:
        self._clock = clock
        self._revoked = revoked
        self._expires = expires

    def execute(self, request: Request, call_next: Execute) -> Outcome:
        if request.id in self._revoked:
            return Revoked("revoked")
        if (message.EXPIRES in request.headers or self._expires) and self._clock.now() >= self._expiry(request):
            return Revoked("expired")
        return call_next(request)

    def _expiry(self, request: Request) -> float:
        at = read_int(request.headers, message.EXPIRES)
        if at:
            return at / 1000
        seconds = self._expires.get(request.task)
        if seconds is None:
            return float("inf")
        return first_published(request.headers, request.published_at) + seconds


class Revocations:
    """Reads all notices before the worker consumes anything, and follows them from then on.

    Args:
        known: filled with what is known, by the task's id.
        terminate: interrupts the task of this id where it runs.
        kept: seconds that a notice stays on the topic.
    """

    def __init__(
        self, app: PulsarTasks, known: dict[str, Known], terminate: Callable[[str], None], *, kept: float = KEPT
    ) -> None:
        self._app = app
        self._known = known
        self._terminate = terminate
        self._kept = kept
        self._notices = Notices(app, app.revocations, kept_for=kept, learn=self._note)

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._notices.start()

    def wait_until_known(self) -> None:
        """Returns when all notices are known that there are.

        Raises:
            AuthenticationError, AuthorizationError: they must not be read.
        """
        self._notices.wait_until_known()

    def expire(self) -> None:
        """Forget what nobody needs to know any more, here and on the topic."""
        now = self._app.clock.now()
        for task_id, (until, published) in list(self._known.items()):
            if until <= now:
                self._known.pop(task_id, None)
            elif until - published > self._kept * 1.1 and now - published > self._kept * RENEW:
                # Of a call that is due after its notice's time. All workers do this, each unless it has read the copy.
                self._app.publish(Notice(task_id, until).publication(self._app.revocations))
        self._notices.trim()

    def close(self) -> None:
        self._notices.stop()

    def _note(self, delivery: Delivery) -> None:
        try:
            notice = Notice.read(delivery.value)
        except UnreadableMessageError as error:
            _log.warning("revocation.unreadable", error=str(error))
            return
        if notice.until <= self._app.clock.now():
            return
        if len(self._known) >= MOST:
            _log.warning("revocation.forgotten", id=(oldest := next(iter(self._known))))
            del self._known[oldest]
        self._known[notice.id] = (notice.until, delivery.published_at)
        if notice.terminate:
            self._terminate(notice.id)
