"""Results without a database: kept on a topic, and pushed to the caller.

A result goes to ``<app>.results``, where a subscription that nobody reads (the keeper) holds it, and to the caller's
inbox. A look-up reads from the instant inside the task's id (UUIDv7) until it finds a success, so it costs as much as
was stored from that call to its end. How far tasks are that have not ended goes to ``<app>.results-states``, so that no
look-up of a result has to read it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager

from pulsartasks.brokers.base import Packing, Reader, confirmed
from pulsartasks.errors import ConfigurationError, PulsarTasksError
from pulsartasks.message import TASK_ID, Publication, task_id_instant
from pulsartasks.results.base import LOOK_AGAIN, PackedResult, Place, Reported, Result, newer
from pulsartasks.results.forgotten import Forgotten
from pulsartasks.results.inbox import PushedResults, pushes
from pulsartasks.topics import KEEPER

CLOCK_SKEW = 10.0
"""Seconds by which the caller's clock may run ahead of the worker's without a look-up missing the result."""
LIKELY_SKEW = 0.25
"""Seconds by which clocks differ at most where they are kept in step: where a result is looked for first, since many
may have been stored in ten seconds."""
REPORT_TIMEOUT = 10.0
"""Seconds to wait until the broker has confirmed how far tasks are."""


def open_results(url: str, place: Place) -> TopicResults:
    """The store of this process.

    Raises:
        ConfigurationError: `url` says more than that it is a topic.
    """
    if url:
        raise ConfigurationError(f"results: a topic needs no {url!r}; leave results= out")
    return TopicResults(place)


class TopicResults(PushedResults):
    """Results on the broker that also carries the calls."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._states = f"{place.topic}-states"
        # For longer than results are kept: the task may not have ended when it is forgotten.
        self._forgotten = Forgotten(
            place.broker, f"{place.topic}-forgotten", window=2 * place.expires, clock=place.clock
        )
        self._declared: set[str] = set()

    def store(self, results: Sequence[PackedResult]) -> Sequence[PulsarTasksError | None]:
        self._declare(self._topic)
        kept = [Publication(self._topic, each.value, each.id, each.headers) for each in results]
        outcomes = self._broker.publish_many([*kept, *pushes(results)])
        return [outcome if isinstance(outcome, PulsarTasksError) else None for outcome in outcomes[: len(kept)]]

    def find(self, task_id: str) -> Result | None:
        made = task_id_instant(task_id)
        # Just now there cannot be many, and a second reader would cost more than it saves.
        if made is not None and made < self._clock.now() - 4 * LIKELY_SKEW:
            with closing(self.follow([task_id], until=0.0, skew=LIKELY_SKEW)) as results:
                if (found := next(results, None)) is not None:
                    return found
        return super().find(task_id)

    def follow(
        self, task_ids: Collection[str], *, until: float, skew: float = CLOCK_SKEW
    ) -> Generator[Result, None, None]:
        """Read what is kept from the instant of the oldest id on, and then what arrives."""
        left, failed = set(task_ids), dict[str, Result]()
        forgotten: Collection[str] | None = None
        with self._reader(self._topic, task_ids, skew=skew) as reader:
            while left:
                patience = 0.0 if failed else min(LOOK_AGAIN, max(0.0, until - time.monotonic()))
                delivery = reader.receive(patience)
                if delivery is not None:
                    if (task_id := delivery.properties.get(TASK_ID, "")) not in left:
                        continue
                    if forgotten is None:
                        forgotten = self._forgotten.all()
                    if task_id in forgotten:
                        continue
                    result = self._read(delivery.value, delivery.properties)
                    if result is not None and result.state == "SUCCESS":
                        left.discard(task_id)
                        failed.pop(task_id, None)
                        yield result
                    elif result is not None:
                        failed[task_id] = result  # it may have been replayed, so a later one counts
                elif failed:
                    left -= failed.keys()
                    yield from failed.values()
                    failed.clear()
                elif time.monotonic() >= until:
                    return

    def report(self, states: Sequence[Reported]) -> None:
        self._declare(self._states)
        packed = [self.pack_state(each) for each in states]
        kept = [Publication(self._states, each.value, each.id, each.headers) for each in packed]
        outcomes = self._broker.publish_many([*kept, *pushes(packed)], timeout=REPORT_TIMEOUT)
        for outcome in outcomes[: len(kept)]:
            confirmed(outcome)

    def find_state(self, task_id: str) -> Result | None:
        found = None
        with self._reader(self._states, [task_id]) as reader:
            while (delivery := reader.receive(0.0)) is not None:
                if delivery.properties.get(TASK_ID) == task_id:
                    found = newer(found, self._read(delivery.value, delivery.properties))
        return None if found is None or task_id in self._forgotten.all() else found

    def forget(self, task_id: str) -> None:
        self._forgotten.add(task_id)

    def close(self) -> None:
        super().close()
        self._forgotten.close()

    def expire(self) -> None:
        for topic in (self._topic, self._states):
            self._declare(topic)
            self._broker.trim(topic, KEEPER, before=self._clock.now() - self._expires)
        self._forgotten.expire()

    @contextmanager
    def _reader(self, topic: str, task_ids: Collection[str], *, skew: float = CLOCK_SKEW) -> Iterator[Reader]:
        """Reads what was kept on `topic` since the instant of the oldest id."""
        self._declare(topic)
        began = min((task_id_instant(task_id) or 0.0) for task_id in task_ids)
        reader = self._broker.read(topic, since=max(self._clock.now() - self._expires, began - skew))
        try:
            yield reader
        finally:
            reader.close()

    def _declare(self, topic: str) -> None:
        if topic not in self._declared:
            self._broker.declare(topic, [KEEPER], packing=Packing(batching=True))
            self._declared.add(topic)
