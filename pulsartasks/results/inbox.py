"""Waiting for what is pushed: the inbox of a process, and what all stores share whose results arrive there.

A push goes to the caller's own non-persistent topic, whose loss costs nothing: who waits also looks at what is kept
when it begins, now and then, and at the end.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from queue import Empty, SimpleQueue
from uuid import uuid4

import msgspec
import structlog

from pulsartasks.brokers.base import Broker, Delivery, Reader, check_size
from pulsartasks.clock import Clock
from pulsartasks.errors import ClosedError, PulsarTasksError
from pulsartasks.message import CLAIM, LONGEST_ID, TASK_ID, Publication, task_id_instant
from pulsartasks.results.base import (
    LOOK_AGAIN,
    Heard,
    PackedResult,
    Place,
    Reported,
    Result,
    ResultStore,
    newer,
    text_of,
)
from pulsartasks.serializers import UNREADABLE
from pulsartasks.topics import TOGETHER, reply_topic, volatile_topic

LISTEN_AGAIN = 1.0
"""Seconds after which listening is tried again that the broker did not allow."""
PUSHED = 100_000
"""Bytes of results that are pushed to a caller in one message, unless a single one is larger."""
REMEMBERED = 10_000
"""Results that were pushed here last."""

_log = structlog.get_logger("pulsartasks")
_decode = msgspec.json.Decoder(Result).decode
_decode_list = msgspec.json.Decoder(list[Result]).decode


class PushedResults(ResultStore):
    """A store whose results are also pushed to the caller, so that a wait needs it only where a push may be missing."""

    def __init__(self, place: Place) -> None:
        self._broker = place.broker
        self._clock = place.clock
        self._claims = place.claims
        self._topic = place.topic
        self._expires = place.expires
        replies = volatile_topic(place.topic)
        self._inbox = Inbox(place.broker, reply_topic(place.topic, place.reply or uuid4().hex), place.clock)
        self._may_reply_to = re.compile(re.escape(replies) + "-(?!.*-partition-)[0-9A-Za-z-]{1,64}").fullmatch

    @abstractmethod
    def follow(self, task_ids: Collection[str], *, until: float) -> Generator[Result, None, None]:
        """The results that are kept, and then those that come until `until` (monotonic seconds), each once."""

    @property
    def reply_to(self) -> str:
        return self._inbox.topic

    def pack(self, result: Result, *, reply_to: str | None) -> PackedResult:
        value = msgspec.json.encode(result)
        kept = self._claims.stow(Publication(self._topic, value, key=result.id, properties={TASK_ID: result.id}))
        if (error := check_size(kept)) is not None:
            raise error
        return PackedResult(result.id, kept.value, kept.properties, self._allowed(reply_to), result.state)

    def pack_state(self, reported: Reported) -> PackedResult:
        """What is kept and pushed of a task that has not ended; never so large that it would need a claim."""
        state, reply_to = reported
        return PackedResult(
            state.id, msgspec.json.encode(state), {TASK_ID: state.id}, self._allowed(reply_to), state.state
        )

    def find(self, task_id: str) -> Result | None:
        return self._first(task_id, until=0.0)

    def heard(self, task_id: str) -> Heard:
        self._inbox.listen()
        newest, complete = self._inbox.heard(task_id)
        if isinstance(newest, Delivery):
            newest = self._read(newest.value, newest.properties)
        return Heard(newest, complete)

    def wait(self, task_id: str, timeout: float | None, *, pushed: bool) -> Result | None:
        until = _instant(timeout)
        if not pushed:
            return self.find(task_id) or self._first(task_id, until=until)
        waiter = self._inbox.expect(task_id)
        try:
            while waiter.result is None:
                if waiter.unread:
                    self._look(waiter, task_id)
                elif (left := until - time.monotonic()) > 0:
                    if not waiter.wait(min(LOOK_AGAIN, left)):
                        waiter.look = True
                else:
                    break
            return waiter.result
        finally:
            self._inbox.forget(task_id)

    def watch(self, task_id: str, timeout: float | None, tell: Callable[[Result], object]) -> Result | None:
        until = _instant(timeout)
        news: SimpleQueue[Result | None] = SimpleQueue()
        waiter = self._inbox.expect(task_id, watched_by=news)
        arrived = partial(news.put, None)
        told: Result | None = None
        waiter.listen(arrived)
        try:
            while waiter.result is None:
                if waiter.unread:
                    self._look(waiter, task_id)
                    if waiter.result is None:
                        news.put(self.find_state(task_id))  # its push may be missing, too
                    continue
                try:
                    state = news.get(timeout=max(0.0, min(LOOK_AGAIN, until - time.monotonic())))
                except Empty:
                    if time.monotonic() >= until:
                        break
                    waiter.look = True
                else:
                    # What was found may be ahead of pushes that are still on their way.
                    if state is not None and state != told and newer(told, state) is state:
                        tell(state)
                        told = state
            return waiter.result
        finally:
            waiter.unlisten(arrived)
            self._inbox.forget(task_id, watched_by=news)

    async def wait_async(self, task_id: str, timeout: float | None, *, pushed: bool) -> Result | None:
        if not pushed:
            return await asyncio.to_thread(self.wait, task_id, timeout, pushed=False)
        if not self._inbox.listening:
            await asyncio.to_thread(self._inbox.listen)
        until = _instant(timeout)
        waiter = self._inbox.expect(task_id)
        try:
            while waiter.result is None:
                if waiter.unread:
                    await asyncio.to_thread(self._look, waiter, task_id)
                elif (left := until - time.monotonic()) > 0:
                    if not await waiter.wait_async(min(LOOK_AGAIN, left)):
                        waiter.look = True
                else:
                    break
            return waiter.result
        finally:
            self._inbox.forget(task_id)

    def each(self, task_ids: Collection[str], timeout: float | None, *, pushed: bool) -> Iterator[Result]:
        until = _instant(timeout)
        if not pushed:
            yield from self.follow(task_ids, until=until)
            return
        arrived: SimpleQueue[str] = SimpleQueue()
        waiters = {task_id: self._inbox.expect(task_id) for task_id in task_ids}
        tells = {task_id: partial(arrived.put, task_id) for task_id in waiters}
        try:
            for task_id, waiter in waiters.items():
                waiter.listen(tells[task_id])
            yield from self._arriving(waiters, arrived, until=until)
        finally:
            for task_id, waiter in waiters.items():
                waiter.unlisten(tells[task_id])
                self._inbox.forget(task_id)

    def _arriving(self, waiters: Mapping[str, Waiter], arrived: SimpleQueue[str], *, until: float) -> Iterator[Result]:
        """The results of `waiters`, whose ids come by `arrived`; one look is for all that may have been missed."""
        left = dict.fromkeys(waiters)
        self._look_for_all([id_ for id_, waiter in waiters.items() if waiter.look], waiters)
        while left:
            try:
                task_id = arrived.get(timeout=max(0.0, min(LOOK_AGAIN, until - time.monotonic())))
            except Empty:
                late = time.monotonic() >= until
                if not self._look_for_all(left, waiters) and late:
                    return
                continue
            waiter = waiters[task_id]
            if task_id in left and waiter.unread:
                self._look(waiter, task_id)
            if task_id in left and waiter.result is not None:
                del left[task_id]
                yield waiter.result

    def _look_for_all(self, task_ids: Collection[str], waiters: Mapping[str, Waiter]) -> bool:
        """Have those arrive that are kept; whether any is."""
        found = list(self.follow(task_ids, until=0.0)) if task_ids else []
        for task_id in task_ids:
            waiters[task_id].look = False
        for result in found:
            waiters[result.id].take(result)
        return bool(found)

    def _look(self, waiter: Waiter, task_id: str) -> None:
        """Fetch what was pushed as a claim, else look at what is kept."""
        claimed = waiter.claimed  # read once: whoever else waits may fetch it as well, and be done first
        if claimed is not None:
            waiter.found(self._read(claimed.value, claimed.properties))
            waiter.drop(claimed)
        elif waiter.look:
            waiter.look = False  # who joins meanwhile waits for what this look finds
            try:
                waiter.found(self.find(task_id))
            except BaseException:
                waiter.look_again()
                raise

    def close(self) -> None:
        self._inbox.close()

    def _allowed(self, reply_to: str | None) -> str | None:
        """The topic on which a caller listens; None if it is no such topic: a message must not choose what a worker
        publishes to.
        """
        if reply_to and not self._may_reply_to(reply_to):
            _log.warning("reply.refused", topic=reply_to[:LONGEST_ID])
            return None
        return reply_to

    def _read(self, value: bytes, headers: Mapping[str, str]) -> Result | None:
        """The result in a message; None if it is none, since anybody may have written it."""
        value = self._claims.fetch(value, headers)
        try:
            return _decode(value)
        except UNREADABLE as error:
            _log.warning("result.unreadable", error=text_of(error))
            return None

    def _first(self, task_id: str, *, until: float) -> Result | None:
        with closing(self.follow([task_id], until=until)) as results:
            return next(results, None)


class Waiter:
    """The `get()` of one result in progress, by one or more threads and tasks of asyncio."""

    def __init__(self, *, may_have_missed: bool) -> None:
        self._changed = threading.Condition()
        self.look = may_have_missed
        """The push is only a hint: before this process listened it was lost, and a reconnect may have swallowed it. So
        who waits looks at what is kept when it begins, now and then, and at the end."""
        self.result: Result | None = None
        self.claimed: Delivery | None = None
        """The result as it was pushed, if that is a claim: who waits fetches it."""
        self.waiting = 0
        self.watchers: list[SimpleQueue[Result | None]] = []
        """Who wants to know how far it is."""
        self._listeners: list[Callable[[], object]] = []

    @property
    def unread(self) -> bool:
        """There is something to be read, or looked for."""
        return self.look or self.claimed is not None

    @property
    def arrived(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.result is not None or self.unread

    def take(self, came: Result | Delivery) -> None:
        with self._changed:
            if isinstance(came, Delivery):
                self.claimed = came
            else:
                self.result = came
        self._tell()

    def found(self, result: Result | None) -> None:
        """Take what a look-up gave; if that is nothing, a result that was pushed while it looked stays."""
        if result is not None:
            self.take(result)

    def drop(self, claimed: Delivery) -> None:
        """Forget a claim that was fetched, unless another one came meanwhile."""
        with self._changed:
            if self.claimed is claimed:
                self.claimed = None

    def look_again(self) -> None:
        """Have somebody else look, since whoever did so failed."""
        self.look = True
        self._tell()

    def listen(self, tell: Callable[[], object]) -> None:
        """Have `tell` called at whatever arrives, and at once if something did."""
        self._listeners.append(tell)  # before the look, as `_tell` comes after the change: one of them sees the other
        if self.arrived:
            tell()

    def unlisten(self, tell: Callable[[], object]) -> None:
        self._listeners.remove(tell)

    def wait(self, timeout: float) -> bool:
        """Wait until something arrives; whether it did within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.arrived, timeout)

    async def wait_async(self, timeout: float) -> bool:
        """The same from asyncio."""
        loop = asyncio.get_running_loop()
        pushed = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                loop.call_soon_threadsafe(pushed.set)

        self._listeners.append(tell)
        try:
            if not self.arrived:
                await asyncio.wait_for(pushed.wait(), timeout)
            return True
        except asyncio.TimeoutError:
            return False
        finally:
            self._listeners.remove(tell)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for tell in list(self._listeners):
            tell()


class Inbox:
    """Hears of results on this process's own topic; it listens from the first `get()` on."""

    def __init__(self, broker: Broker, topic: str, clock: Clock) -> None:
        self.topic = topic
        self._clock = clock
        self._broker = broker
        self._lock = threading.Lock()
        self._waiters: dict[str, Waiter] = {}
        self._arrived: OrderedDict[str, Result | Delivery | None] = OrderedDict()
        """What was pushed, the latest last; None once somebody has it, so that the next one to ask looks at what is
        kept."""
        self._states: OrderedDict[str, Result] = OrderedDict()
        """How far calls are of which no result was pushed yet."""
        self._reader: Reader | None = None
        self._complete_since = float("inf")
        """Of calls made since this instant no result was missed: it began to listen then, or had to forget the result
        of one made then."""

    def expect(self, task_id: str, *, watched_by: SimpleQueue[Result | None] | None = None) -> Waiter:
        self.listen()
        with self._lock:
            waiter = self._waiters.get(task_id)
            if waiter is None:
                known, missed = self._arrived.get(task_id), not self._complete(task_id)
                waiter = self._waiters[task_id] = Waiter(may_have_missed=known is None and missed)
                if known is not None:
                    self._arrived[task_id] = None
                    waiter.take(known)
            waiter.waiting += 1
            if watched_by is not None:
                waiter.watchers.append(watched_by)
                if (state := self._states.get(task_id)) is not None:
                    watched_by.put(state)
            return waiter

    def heard(self, task_id: str) -> tuple[Result | Delivery | None, bool]:
        """The result that was pushed, which is forgotten here unless it is a claim, or else how far the call is; and
        whether nothing can have been missed.
        """
        with self._lock:
            complete = self._complete(task_id)
            if (waiter := self._waiters.get(task_id)) is not None and waiter.result is not None:
                return waiter.result, complete
            arrived = self._arrived.get(task_id)
            if isinstance(arrived, Result):
                self._arrived[task_id] = None
            return arrived or self._states.get(task_id), complete

    def forget(self, task_id: str, *, watched_by: SimpleQueue[Result | None] | None = None) -> None:
        with self._lock:
            waiter = self._waiters[task_id]
            if watched_by is not None:
                waiter.watchers.remove(watched_by)
            waiter.waiting -= 1
            if not waiter.waiting:
                del self._waiters[task_id]
                if waiter.result is None and waiter.claimed is not None:
                    self._arrived[task_id] = waiter.claimed  # it could not be fetched: the next one to wait tries again

    def close(self) -> None:
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    @property
    def listening(self) -> bool:
        return self._reader is not None

    def listen(self) -> None:
        """Begin to; harmless afterwards."""
        if self.listening:
            return
        with self._lock:
            if not self.listening:
                self._reader = self._broker.read(self.topic)
                self._complete_since = self._clock.now()
                threading.Thread(
                    target=self._dispatch, args=[self._reader], name="pulsartasks-results", daemon=True
                ).start()

    def _complete(self, task_id: str) -> bool:
        if task_id in self._arrived:
            return self._arrived[task_id] is not None
        made = task_id_instant(task_id)
        return made is not None and made > self._complete_since

    def _dispatch(self, reader: Reader) -> None:
        while True:
            try:
                delivery = reader.receive(1.0)
            except ClosedError:
                return
            except PulsarTasksError as error:  # what is pushed meanwhile is missed, so who waits must look
                _log.warning("results.unheard", error=str(error))
                self._complete_since = float("inf")
                time.sleep(LISTEN_AGAIN)
                self._complete_since = self._clock.now()
                continue
            if delivery is not None:
                self._arrive(delivery)

    def _arrive(self, delivery: Delivery) -> None:
        if CLAIM in delivery.properties:
            self._take(delivery.properties.get(TASK_ID, ""), delivery)
            return
        for result in _pushed(delivery.value):
            if result.ended:
                self._take(result.id, result)
            else:
                self._note(result)

    def _note(self, state: Result) -> None:
        with self._lock:
            if (newest := newer(self._states.get(state.id), state)) is not None:
                self._states[state.id] = newest
            if (waiter := self._waiters.get(state.id)) is not None:
                for news in waiter.watchers:
                    news.put(state)
            if len(self._states) > REMEMBERED:
                self._states.popitem(last=False)

    def _take(self, task_id: str, pushed: Result | Delivery) -> None:
        with self._lock:
            self._states.pop(task_id, None)
            waiter = self._waiters.get(task_id)
            self._arrived[task_id] = pushed if waiter is None else None
            if len(self._arrived) > REMEMBERED:
                made = task_id_instant(self._arrived.popitem(last=False)[0])
                self._complete_since = max(self._complete_since, self._clock.now() if made is None else made)
        if waiter is not None:
            waiter.take(pushed)


def pushes(results: Sequence[PackedResult]) -> Iterator[Publication]:
    """What is sent to those who wait for `results`: each by itself, but in lists to who takes them together."""
    lists: dict[str, bytes] = defaultdict(bytes)
    for result in results:
        if result.reply_to is None:
            continue
        if CLAIM in result.headers or TOGETHER not in result.reply_to:
            yield Publication(result.reply_to, result.value, properties=result.headers)
            continue
        pushed = lists[result.reply_to]
        if pushed and len(pushed) + len(result.value) > PUSHED:
            yield Publication(result.reply_to, b"[%b]" % pushed)
            pushed = b""
        lists[result.reply_to] = pushed + b"," + result.value if pushed else result.value
    yield from (Publication(reply_to, b"[%b]" % pushed) for reply_to, pushed in lists.items())


def _pushed(value: bytes) -> Sequence[Result]:
    """The results in a message to a caller; none if it is no such message, since anybody may have written it."""
    try:
        return _decode_list(value)
    except UNREADABLE as error:
        _log.warning("result.unreadable", error=text_of(error))
        return ()


def _instant(timeout: float | None) -> float:
    """The monotonic clock's time after `timeout` seconds."""
    return float("inf") if timeout is None else time.monotonic() + timeout
