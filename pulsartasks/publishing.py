"""How calls and events leave: each at once and confirmed, or those of a block together, in one round trip."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar, Token, copy_context
from functools import partial
from typing import TypeVar

from typing_extensions import ParamSpec

from pulsartasks.brokers.base import confirmed
from pulsartasks.errors import PulsarTasksError, UnconfirmedError
from pulsartasks.message import TASK, TASK_ID, Publication
from pulsartasks.topics import short_name

P = ParamSpec("P")
R = TypeVar("R")

PublishMany = Callable[[Sequence[Publication]], list[str | PulsarTasksError]]
Answers = Sequence["asyncio.Future[str]"]
Aside = Callable[[PublishMany, Sequence[Publication]], Awaitable[list[str | PulsarTasksError]]]


class Block:
    """What was called in one ``with app.publishing():``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collected: list[Publication] = []
        self.ended = False
        self.unsent = "it leaves when the block of app.publishing() ends; ask for its result behind that"
        """Why nothing of it has a result; empty once it was sent."""

    def add(self, publication: Publication) -> bool:
        """Whether it is still time to: whoever outlives the block, e.g. a task of asyncio, sends by itself."""
        with self._lock:
            if not self.ended:
                self._collected.append(publication)
            return not self.ended

    def end(self, unsent: str) -> Sequence[Publication]:
        with self._lock:
            self.ended, self.unsent = True, unsent
            return self._collected


class Publishing:
    """What an app's calls and events are sent by; ``with app.publishing():`` sends those of a block together."""

    def __init__(self, publish_many: PublishMany, threads: Callable[[], Executor], *, alone: bool) -> None:
        self._publish_many = publish_many
        self._threads = threads
        self._alone = alone
        """Each from asyncio by itself, since what goes around it may want to know the context of its caller."""
        self._departing: dict[tuple[object, str], list[tuple[Publication, asyncio.Future[str]]]] = {}
        self._block: ContextVar[Block | None] = ContextVar("block", default=None)

    def __call__(self) -> Together:
        """Send what this thread (or asyncio task) calls and publishes in the block together, at its end.

        All of it takes one round trip, and middleware goes around it once. In the block a `publish` of an event gives
        "" in place of the message id, and `get()` refuses to wait. When the block ends with an exception nothing is
        sent. A block in a block joins it. `PulsarTasks.publish` and `publish_many` are not held back.

        Raises:
            UnconfirmedError: when the block ends: some of it was not confirmed; the others stay sent.
        """
        return Together(self._block, self._publish_many, self.aside)

    async def aside(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """What `function` gives, called on another thread, in the block that is open here; asyncio's loop goes on.

        Whoever is cancelled meanwhile does not know whether it was called: it goes on by itself if it had begun.
        """
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._threads(), lambda: context.run(function, *args, **kwargs)
        )

    @property
    def block(self) -> Block | None:
        """The block that collects what is sent here, if any."""
        block = self._block.get()
        return None if block is None or block.ended else block

    def send(self, publication: Publication) -> str:
        """Send now and give the message id once it is confirmed; "" if it leaves with the block that is open here."""
        block = self._block.get()
        if block is not None and block.add(publication):
            return ""
        return confirmed(*self._publish_many([publication]))

    def send_all(self, publications: Sequence[Publication]) -> None:
        """Send now, all in one round trip; those of a block leave with it.

        Raises:
            UnconfirmedError: some of several were not confirmed; the others stay sent.
            PulsarTasksError: the only one was not.
        """
        failures = self.send_many(publications)
        if len(publications) == 1 and failures:
            raise next(iter(failures.values()))
        raise_unconfirmed(failures, len(publications))

    def send_many(self, publications: Sequence[Publication]) -> dict[str, PulsarTasksError]:
        """The same; gives what was not confirmed by its name, and what went wrong."""
        block = self._block.get()
        left = [each for each in publications if block is None or not block.add(each)]
        return _failures(left, self._publish_many(left)) if left else {}

    async def asend(self, publication: Publication) -> str:
        """`send` from asyncio, whose loop goes on; what its tasks send to a topic in the same turn shares a round trip.

        Whoever is cancelled meanwhile does not know whether it was sent.
        """
        block = self._block.get()
        if block is not None and block.add(publication):
            return ""
        if self._alone:
            return await self.aside(self.send, publication)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        departing = self._departing.setdefault((loop, publication.topic), [])
        departing.append((publication, answer))
        if len(departing) == 1:
            loop.call_soon(self._depart, loop, publication.topic)
        return await answer

    def _depart(self, loop: asyncio.AbstractEventLoop, topic: str) -> None:
        going = [each for each in self._departing.pop((loop, topic)) if not each[1].done()]
        answers = [answer for _, answer in going]
        try:
            # Not a task: whoever cancels all tasks must not take away the answer that another one waits for.
            sending = loop.run_in_executor(
                self._threads(), self._publish_many, [publication for publication, _ in going]
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for those who wait
            _answer(answers, [error for _ in answers])
        else:
            sending.add_done_callback(partial(_answer_all, answers))


def _answer_all(answers: Answers, sending: asyncio.Future[list[str | PulsarTasksError]]) -> None:
    error = sending.exception()
    _answer(answers, sending.result() if error is None else [error for _ in answers])


def _answer(answers: Answers, outcomes: Sequence[str | BaseException]) -> None:
    for answer, outcome in zip(answers, outcomes, strict=True):
        if answer.done():
            continue  # it was cancelled meanwhile
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


class Together:
    """One use of `Publishing`, as a context manager."""

    def __init__(self, variable: ContextVar[Block | None], publish_many: PublishMany, aside: Aside) -> None:
        self._variable = variable
        self._publish_many = publish_many
        self._aside = aside
        self._token: Token[Block | None] | None = None

    def __enter__(self) -> None:
        outer = self._variable.get()
        if outer is None or outer.ended:
            self._token = self._variable.set(Block())

    def __exit__(self, kind: object, *_: object) -> None:
        if collected := self._end(kind):
            raise_unconfirmed(_failures(collected, self._publish_many(collected)), len(collected))

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, kind: object, *_: object) -> None:
        if collected := self._end(kind):
            outcomes = await self._aside(self._publish_many, collected)
            raise_unconfirmed(_failures(collected, outcomes), len(collected))

    def _end(self, kind: object) -> Sequence[Publication]:
        """What is to be sent."""
        block = self._variable.get()
        if self._token is None or block is None:
            return ()  # it joined the outer one, which sends
        self._variable.reset(self._token)
        if kind is None:
            return block.end("")
        block.end("it was never sent: its block of app.publishing() ended with an exception")
        return ()


def raise_unconfirmed(failures: Mapping[str, PulsarTasksError], of: int, *, calls: object = None) -> None:
    """Raise an `UnconfirmedError` that names what was not confirmed, if anything was not."""
    if failures:
        raise UnconfirmedError(failures, of, calls=calls) from next(iter(failures.values()))


def _failures(
    publications: Sequence[Publication], outcomes: Sequence[str | PulsarTasksError]
) -> dict[str, PulsarTasksError]:
    return {
        _name(publication, place): outcome
        for place, (publication, outcome) in enumerate(zip(publications, outcomes, strict=True))
        if isinstance(outcome, PulsarTasksError)
    }


def _name(publication: Publication, place: int) -> str:
    """A call as its handle is printed; an event by its topic and its place in the block, from 0."""
    properties = publication.properties
    if TASK in properties:
        return f"{properties[TASK]}[{properties[TASK_ID]}]"
    return f"{short_name(publication.topic)}[{place}]"
