"""What a worker knows of revoked tasks, and the gate at which they and those that have expired end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress

import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery, Reader
from pulsartasks.errors import ClosedError, PulsarTasksError, UnreadableMessageError
from pulsartasks.message import Request, read_int
from pulsartasks.middleware.base import Execute, Middleware
from pulsartasks.outcome import Outcome, Revoked
from pulsartasks.retry import backoff
from pulsartasks.revocation import KEPT, Notice
from pulsartasks.topics import KEEPER
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

    def __init__(self, revoked: Container[str], expires: Mapping[str, float]) -> None:
        self._revoked = revoked
        self._expires = expires

    def execute(self, request: Request, call_next: Execute) -> Outcome:
        if request.id in self._revoked:
            return Revoked("revoked")
        if (message.EXPIRES in request.headers or self._expires) and time.time() >= self._expiry(request):
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
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to `load`, while others make their topics; what goes wrong is for those who call that to say."""
        threading.Thread(target=self._load_early, name="pulsartasks-notices", daemon=True).start()

    def load(self) -> None:
        """Returns when all notices are known that there are; the first call reads them.

        Raises:
            PulsarTasksError: they cannot be had; the next call tries again.
        """
        with self._lock:
            if self._reader is None and not self._closed.is_set():
                self._reader = self._read()
                if self._closed.is_set():  # meanwhile, and it did not wait for this
                    self._reader.close()
                threading.Thread(target=self._follow, name="pulsartasks-revocations", daemon=True).start()

    def expire(self) -> None:
        """Forget what nobody needs to know any more, here and on the topic."""
        if self._reader is None:
            return
        now = time.time()
        for task_id, (until, published) in list(self._known.items()):
            if until <= now:
                self._known.pop(task_id, None)
            elif until - published > self._kept * 1.1 and now - published > self._kept * RENEW:
                # Of a call that is due after its notice's time. All workers do this, each unless it has read the copy.
                self._app.publish(Notice(task_id, until).publication(self._app.revocations))
        self._app.broker.trim(self._app.revocations, KEEPER, before=now - self._kept)

    def close(self) -> None:
        self._closed.set()
        if self._reader is not None:
            self._reader.close()

    def _load_early(self) -> None:
        with suppress(PulsarTasksError):
            self.load()

    def _read(self) -> Reader:
        """A reader behind all notices that there are."""
        topic = self._app.revocations
        self._app.declare(topic)
        reader = self._app.broker.read(topic, since=0.0)  # what is older than a week was let go
        try:
            while (delivery := reader.receive(0)) is not None:
                self._note(delivery)
        except BaseException:
            reader.close()
            raise
        return reader

    def _follow(self) -> None:
        tries = 0
        while not self._closed.is_set():
            try:
                assert self._reader is not None  # `load` made it
                delivery = self._reader.receive(1.0)
            except ClosedError:
                return
            except PulsarTasksError as error:
                _log.warning("revocations.unheard", error=str(error))
                self._closed.wait(backoff(tries, factor=0.2, maximum=10.0))
                tries += 1
                self._read_again()
                continue
            tries = 0
            if delivery is not None:
                self._note(delivery)

    def _read_again(self) -> None:
        """Begin anew: a notice may have been missed, and it does no harm to hear of one twice."""
        try:
            reader = self._read()
        except PulsarTasksError:
            return  # the old one says so again
        old, self._reader = self._reader, reader
        if old is not None:
            old.close()
        if self._closed.is_set():  # meanwhile
            reader.close()

    def _note(self, delivery: Delivery) -> None:
        try:
            notice = Notice.read(delivery.value)
        except UnreadableMessageError as error:
            _log.warning("revocation.unreadable", error=str(error))
            return
        if notice.until <= time.time():
            return
        if len(self._known) >= MOST:
            _log.warning("revocation.forgotten", id=(oldest := next(iter(self._known))))
            del self._known[oldest]
        self._known[notice.id] = (notice.until, delivery.published_at)
        if notice.terminate:
            self._terminate(notice.id)
