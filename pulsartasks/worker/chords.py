"""Counting the parts of chords, without a store: by whoever holds the one subscription of ``<app>.chord-parts``.

Each part says there how it ended, confirmed before its own message is acknowledged. One worker of the app reads that,
the others stand by. It acknowledges nothing of a chord before what follows the chord is sent and confirmed; so if it
dies, the next one gets all of it again and counts anew.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Consumer, Delivery, Subscription
from pulsartasks.errors import CallError, ChordError, ClosedError, UnreadableMessageError
from pulsartasks.results.base import Failure, RemoteError, text_of
from pulsartasks.serializers import UNREADABLE
from pulsartasks.steps import Opening
from pulsartasks.topics import COUNTER
from pulsartasks.worker.consumer import RECEIVE_TIMEOUT, ConsumerThreads
from pulsartasks.worker.follow_up import Ended, Failed, FollowUp

PREFETCH = 1000
PATIENCE = 120.0
"""Seconds that what a part says waits for its chord's opening, which was sent together with the part; then it is of a
chord that has ended."""
LOOK_EVERY = 10.0
"""Seconds between two looks for chords that take too long."""
REMEMBERED = 10_000
"""Chords that ended and whose other parts may still come."""

_log = structlog.get_logger("pulsartasks")
_decode = msgspec.json.Decoder(Opening | Ended | Failed).decode


@dataclass
class _Chord:
    """What is known of one."""

    since: float
    opening: Opening | None = None
    opened_by: Delivery | None = None
    values: dict[int, msgspec.Raw] = field(default_factory=dict)
    failed: Failed | None = None
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    """All that tells of it, by message id."""

    def note(self, report: Opening | Ended | Failed, delivery: Delivery) -> None:
        self.deliveries[delivery.message_id] = delivery
        if isinstance(report, Opening):
            self.opening, self.opened_by = self.opening or report, self.opened_by or delivery
        elif isinstance(report, Ended):
            self.values.setdefault(report.number, report.value)
        elif report.number not in self.values:  # a part that ended well and ran once more has ended well
            self.failed = self.failed or report

    def result(self) -> bytes | None:
        """The list of its values as JSON; None as long as one is missing."""
        count = 0 if self.opening is None else self.opening.count
        if self.opening is None or len(self.values) < count or not all(n in self.values for n in range(count)):
            return None
        return b"[%b]" % b",".join(bytes(self.values[number]) for number in range(count))


class Chords(ConsumerThreads):
    """Counts, or stands by for whoever does."""

    def __init__(self, app: PulsarTasks, follow_up: FollowUp) -> None:
        super().__init__(app, Subscription((app.chords,), COUNTER, mode="failover", prefetch=PREFETCH), threads=1)
        self._follow_up = follow_up
        self._chords: dict[str, _Chord] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._unread: deque[Delivery] = deque()
        self._looked_at = time.monotonic()
        self._refused = False

    @property
    def ready(self) -> bool:
        return self._refused or super().ready

    def asleep(self) -> tuple[int, float | None]:
        return sum(len(chord.deliveries) for chord in list(self._chords.values())), None

    def start(self, failed: Callable[[BaseException], None], *, first: Callable[[], None]) -> None:
        def refuse(error: BaseException) -> None:  # other workers may be allowed to; these run tasks all the same
            self._refused = True
            _log.warning("chords.uncounted", error=text_of(error))

        super().start(refuse, first=first)

    def _begin(self) -> None:
        self._standing_by.clear()
        self._chords.clear()
        self._unread.clear()
        self._threads = [threading.Thread(target=self._main, name="pulsartasks-chords", daemon=True)]
        self._threads[0].start()

    def _work(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            if not self._unread:
                delivery = consumer.receive(RECEIVE_TIMEOUT)
                if delivery is not None:
                    self._unread.append(delivery)
                elif not consumer.connected:
                    self._begin_anew(consumer)
            if self._unread:
                self.take(self._unread[0])
                self._unread.popleft()
            if time.monotonic() - self._looked_at > LOOK_EVERY:
                self._looked_at = time.monotonic()
                self._expire(self._app.clock.now())

    def _begin_anew(self, consumer: Consumer) -> None:
        """Forget all: while the connection is away another worker may count, and what it settled would be missed."""
        consumer.close()
        threading.Thread(target=self._open, name="pulsartasks-chords-open", daemon=True).start()
        raise ClosedError("the connection was lost")

    def take(self, delivery: Delivery) -> None:
        """Count what is said of a chord, and go on behind that if it was the last word.

        Raises:
            PulsarTasksError: the broker does not take what follows; to be tried again.
        """
        try:
            report = _decode(self._app.claims.fetch(delivery.value, delivery.properties))
        except (UnreadableMessageError, *UNREADABLE) as error:
            _log.warning("chord.unreadable", error=text_of(error))
            delivery.acknowledge()
            return
        if report.chord in self._ended:
            delivery.acknowledge()
            return
        chord = self._chords.setdefault(report.chord, _Chord(delivery.published_at))
        chord.note(report, delivery)
        self._decide(report.chord, chord)

    def _decide(self, id_: str, chord: _Chord) -> None:
        """Go on behind the chord if it is known how it ended."""
        if chord.opening is None:
            return
        if chord.failed is not None:
            number, failure = chord.failed.number, chord.failed.failure
            self._fail(chord.opening, failure, f"part {number + 1} of {chord.opening.count}, {failure.summary}")
        elif (value := chord.result()) is not None:
            try:
                self._follow_up.proceed(value, chord.opening.then, single=True)
            except CallError as error:
                self._fail(chord.opening, Failure.of("chord", id_, error), f"what follows cannot be sent: {error}")
        else:
            return
        self._end(id_, chord)

    def _fail(self, opening: Opening, failure: Failure, reason: str) -> None:
        error = RemoteError.capture(ChordError(reason))
        error = msgspec.structs.replace(error, traceback=failure.traceback, part=failure.name)
        self._follow_up.fail(failure, opening.then, error=error, single=True)

    def _end(self, id_: str, chord: _Chord) -> None:
        # The opening first: what a successor finds without one is of a chord that has ended.
        if chord.opened_by is not None:
            chord.opened_by.acknowledge()
        for delivery in chord.deliveries.values():
            if delivery is not chord.opened_by:
                delivery.acknowledge()
        del self._chords[id_]
        self._ended[id_] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _expire(self, now: float) -> None:
        for id_, chord in list(self._chords.items()):
            if chord.opening is None and now - chord.since > PATIENCE:
                self._end(id_, chord)
            elif chord.opening is not None and now - chord.since > self._app.result_expires:
                reason = f"only {len(chord.values)} of {chord.opening.count} parts ended in time"
                _log.warning("chord.expired", chord=id_, ended=len(chord.values), parts=chord.opening.count)
                self._fail(chord.opening, Failure.of("chord", id_, ChordError(reason)), reason)
                self._end(id_, chord)
