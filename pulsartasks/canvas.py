"""Canvas: calls put together before they are sent: one after the other, beside each other, and what follows of that.

``chain``, ``group`` and ``chord`` are classes in lower case, under Celery's names. Nothing here talks to a broker: a
canvas is planned into `steps`, whose ids are fixed then, and the app of its first task sends the first of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeAlias, TypedDict, TypeVar, overload

from typing_extensions import Self, Unpack

from pulsartasks.clock import Clock
from pulsartasks.errors import InvalidArgumentsError
from pulsartasks.message import Publication, new_task_id
from pulsartasks.publishing import Publishing
from pulsartasks.result import AsyncResult, GroupResult
from pulsartasks.stamping import Stamping, StampingVisitor
from pulsartasks.steps import Gather, Parts, Steps, messages
from pulsartasks.topics import namespace_of

R_co = TypeVar("R_co", covariant=True)
H_co = TypeVar("H_co", bound="Handle", covariant=True)
H2 = TypeVar("H2", bound="Handle")
Handle: TypeAlias = "AsyncResult[Any] | GroupResult[Any]"


class CallKeywords(TypedDict, total=False):
    """The options of one call for type checkers; `CallOptions` documents them."""

    countdown: float | timedelta | None
    eta: datetime | None
    key: str | None
    task_id: str | None
    headers: Mapping[str, str]
    expires: float | timedelta | datetime | None
    ignore_result: bool | None
    link: Links
    link_error: Links


class Host(Protocol):
    """What a canvas needs of an app."""

    clock: Clock

    @property
    def chords(self) -> str: ...
    @property
    def publishing(self) -> Publishing: ...
    def declare(self, topic: str) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where in a canvas something stands, and what that gives it."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    preceded: bool = False
    """It is called with the result of what comes before."""
    options: CallKeywords = field(default_factory=CallKeywords)
    """How it begins."""
    task_id: str | None = None
    """That of its last call."""
    gathered: bool = False
    """Somebody needs one value of it, so a group at its end has to be one."""
    links: tuple[Canvas[Any], ...] = ()
    errbacks: tuple[Canvas[Any], ...] = ()
    parent: Handle | None = None


@dataclass(frozen=True)
class Plan(Generic[H_co]):
    """A canvas whose ids are fixed."""

    steps: Steps
    handle: H_co
    errbacks: list[Steps]
    """What is called if its beginning is never reached, since the parts of a chord before it failed."""


class Draft:
    """What planning learns of the apps and topics concerned."""

    def __init__(self, host: Host) -> None:
        self.host = host
        """The app that sends the canvas and counts its chords."""
        self._hosts: dict[str, Host] = {}

    def add(self, host: Host, topic: str, *, preceded: bool = False) -> None:
        """`topic` is published to, and `host` knows its subscriptions; if it is `preceded`, by a worker.

        Raises:
            InvalidArgumentsError: a worker will not publish there.
        """
        if preceded and host is not self.host and namespace_of(topic) != namespace_of(self.host.chords):
            raise InvalidArgumentsError(
                f"{topic} is in another namespace than {self.host.chords}, and workers publish steps only to their own"
            )
        self._hosts.setdefault(topic, host)

    def declare(self) -> None:
        """Make sure that all topics are there, also those that only others will publish to."""
        for topic, host in self._hosts.items():
            host.declare(topic)


class Canvas(ABC, Generic[H_co]):
    """One or more calls that are not sent yet; what it gives when it is sent depends on its kind."""

    @abstractmethod
    def plan(self, place: Place, draft: Draft) -> Plan[H_co]:
        """Fix its ids, and check its arguments as far as they are known."""

    @abstractmethod
    def hosts(self) -> Iterator[Host]:
        """The apps of its tasks, that of the first one first."""

    @abstractmethod
    def set(self, **options: Unpack[CallKeywords]) -> Self:
        """Give it options for when it is sent (see `CallOptions`), and give back itself."""

    def link(self, callback: L) -> L:
        """Have `callback` called with its result, too; gives `callback`. A group passes it to its parts."""
        self.set(link=[*self.links, callback])
        return callback

    def link_error(self, errback: L) -> L:
        """Have `errback` called with a `Failure` if it fails; gives `errback`. A group passes it to its parts, a chain
        to its steps, a chord to what follows its parts.
        """
        self.set(link_error=[*self.errbacks, errback])
        return errback

    def on_error(self, errback: Canvas[Any]) -> Self:
        """`link_error` that gives back the canvas itself."""
        self.link_error(errback)
        return self

    def stamp(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **stamps: Any) -> Self:
        """Label each call in it, and each that is linked to it by now, with `stamps` (data) and what `visitor` says at
        its place; the task reads them from ``self.request.stamps``. Gives back itself.

        A stamp that is given again replaces the one before; with `append_stamps` both are in a list.
        """
        self.take(Stamping(visitor or StampingVisitor(), stamps, append_stamps))
        return self

    @abstractmethod
    def take(self, stamping: Stamping) -> None:
        """Take stamps, and hand them on to what is in it."""

    @property
    @abstractmethod
    def links(self) -> Sequence[Canvas[Any]]: ...
    @property
    @abstractmethod
    def errbacks(self) -> Sequence[Canvas[Any]]: ...

    def delay(self, *args: Any, **kwargs: Any) -> H_co:
        """Send it; `args` come before those that its first call has, `kwargs` in place of them.

        Raises:
            InvalidArgumentsError: arguments do not fit, wherever in it. Nothing was sent.
            UnconfirmedError: the broker did not confirm all of its first calls.
            CallError, BrokerError: as `Task.delay`.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> H_co:
        """Like `delay`, with options for its beginning; task_id is that of its last call, link and link_error as in
        `link` and `link_error`.
        """
        draft, plan = self._begin(args, kwargs, options)
        draft.declare()
        draft.host.publishing.send_all(list(messages(plan.steps, None, now=draft.host.clock.now())))
        return plan.handle

    async def adelay(self, *args: Any, **kwargs: Any) -> H_co:
        """`delay` from asyncio, whose loop goes on. Whoever is cancelled does not know whether it was sent."""
        draft, plan = self._begin(args, kwargs, {})
        publishing = draft.host.publishing
        await publishing.aside(draft.declare)
        await publishing.aside(publishing.send_all, list(messages(plan.steps, None, now=draft.host.clock.now())))
        return plan.handle

    def publication(self) -> Publication:
        """The message that it begins with, with fresh ids each time; the rest travels in it.

        Nothing is asked of the broker, so the topics of another app's steps are not made beforehand, as `delay` does.

        Raises:
            InvalidArgumentsError: arguments do not fit, or it begins with several messages.
        """
        draft = self.draft()
        publications = list(messages(self.plan(Place(), draft).steps, None, now=draft.host.clock.now()))
        if len(publications) != 1:
            raise InvalidArgumentsError(
                f"{self!r} begins with {len(publications)} messages, and this takes one; begin it with a task"
            )
        return publications[0]

    def _begin(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: CallKeywords
    ) -> tuple[Draft, Plan[H_co]]:
        draft = self.draft()
        return draft, self.plan(_place(args, kwargs, options), draft)

    def draft(self) -> Draft:
        """What it is planned with.

        Raises:
            InvalidArgumentsError: there is no task in it.
        """
        for host in self.hosts():
            return Draft(host)
        raise InvalidArgumentsError(f"there is no task in {self!r}, so it cannot be sent")

    def __or__(self, other: Canvas[H2]) -> chain[H2]:
        return chain(self, other)

    def __invert__(self) -> Any:
        """``~canvas`` sends it and waits for its value; for a shell."""
        return self.delay().get()


L = TypeVar("L", bound=Canvas[Any])
Links: TypeAlias = "Canvas[Any] | Sequence[Canvas[Any]] | None"


def as_links(links: Links) -> tuple[Canvas[Any], ...]:
    """What is given as `link` or `link_error`, one or several.

    Raises:
        InvalidArgumentsError: it is no canvas.
    """
    given = () if links is None else tuple(links) if isinstance(links, Iterable) else (links,)
    for each in given:
        if not isinstance(each, Canvas):
            raise InvalidArgumentsError(f"link and link_error take calls like task.s(), not {each!r}")
    return given


def as_arguments(
    args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """What is given as `args` and `kwargs` of a call, each of them None if there are none.

    Raises:
        InvalidArgumentsError: what is no list or tuple, such as a text, or no mapping.
    """
    given = () if args is None else as_args(args)
    if not isinstance(kwargs, (dict, type(None), Mapping)):
        raise InvalidArgumentsError(f'kwargs must be a mapping, e.g. {{"x": 2}}, not {kwargs!r:.100}')
    return given, kwargs or {}


def as_args(args: Sequence[Any]) -> tuple[Any, ...]:
    """What is given as the positional arguments of a call.

    Raises:
        InvalidArgumentsError: it is no list or tuple, such as a text.
    """
    # The usual types first: to ask an abstract one takes ten times as long, for each call.
    if isinstance(args, (str, bytes)) or not isinstance(args, (tuple, list, Sequence)):
        raise InvalidArgumentsError(f"args must be a list or tuple, e.g. (2, 3), not {args!r:.100}")
    return tuple(args)


def plan_links(links: Iterable[Canvas[Any]], draft: Draft) -> tuple[list[Steps], list[Handle]]:
    """The steps of each, called with one argument, and their handles."""
    plans = [each.plan(Place(preceded=True), draft) for each in links]
    return [each.steps for each in plans], [each.handle for each in plans]


def _place(args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: CallKeywords) -> Place:
    begin = CallKeywords(**options)
    args, kwargs = as_arguments(args, kwargs)
    return Place(
        args=args,
        kwargs=kwargs,
        task_id=begin.pop("task_id", None),
        links=as_links(begin.pop("link", None)),
        errbacks=as_links(begin.pop("link_error", None)),
        options=begin,
    )


class _Compound(Canvas[H_co]):
    """What is made of other canvases."""

    def __init__(self) -> None:
        self.options: CallKeywords = {}

    def set(self, **options: Unpack[CallKeywords]) -> Self:
        self.options = {**self.options, **options}
        return self

    @property
    def links(self) -> Sequence[Canvas[Any]]:
        return as_links(self.options.get("link"))

    @property
    def errbacks(self) -> Sequence[Canvas[Any]]:
        return as_links(self.options.get("link_error"))

    def __call__(self, *args: Any, **kwargs: Any) -> H_co:
        """The same as `delay`."""
        return self.delay(*args, **kwargs)

    def _own(self, place: Place) -> Place:
        """`place` with what this canvas was given by `set`, `link` and `link_error`."""
        own = _place((), {}, self.options)
        return replace(
            place,
            options={**own.options, **place.options},
            task_id=place.task_id or own.task_id,
            links=(*own.links, *place.links),
            errbacks=(*own.errbacks, *place.errbacks),
        )


class chain(_Compound[H_co]):  # noqa: N801 - Celery's name
    """Calls one after the other, each with the result of the one before as its first argument.

    ``chain(add.s(2, 2), add.s(4))`` is ``add.s(2, 2) | add.s(4)``. A group that something follows is a chord: what
    follows gets the list of its results; a group of one is then taken for that one. Sent, it gives the `AsyncResult` of
    its last call (a `GroupResult` if it ends in a group), whose ``parent`` is that of the call before.

    Type checkers know that type for up to three canvases; for more, or an iterable of them, write them with ``|``.
    """

    @overload
    def __init__(self, first: Canvas[H_co], /) -> None: ...
    @overload
    def __init__(self, first: Canvas[Any], second: Canvas[H_co], /) -> None: ...
    @overload
    def __init__(self, first: Canvas[Any], second: Canvas[Any], third: Canvas[H_co], /) -> None: ...
    @overload
    def __init__(self: chain[Any], *canvases: Canvas[Any] | Iterable[Canvas[Any]]) -> None: ...
    def __init__(self, *canvases: Any) -> None:
        super().__init__()
        self.tasks: tuple[Canvas[Any], ...] = tuple(
            inner for each in _flat(canvases, "chain") for inner in _unlinked(each, chain)
        )
        if not self.tasks:
            raise InvalidArgumentsError("a chain needs something in it, e.g. chain(add.s(2, 2), add.s(4))")

    def hosts(self) -> Iterator[Host]:
        return (host for each in self.tasks for host in each.hosts())

    def plan(self, place: Place, draft: Draft) -> Plan[H_co]:
        *before, last = self.tasks
        unrolled = [each.tasks[0] if isinstance(each, group) and len(each.tasks) == 1 else each for each in before]
        plan: Plan[H_co] = _in_sequence([*unrolled, last], self._own(place), draft)
        return plan

    def take(self, stamping: Stamping) -> None:
        stamping.parts(self, stamping.visitor.on_chain_start, stamping.visitor.on_chain_end, of=self)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks))


class group(_Compound[GroupResult[R_co]]):  # noqa: N801 - Celery's name
    """Calls beside each other. Sent, it gives a `GroupResult`.

    ``group(add.s(2, 2), add.s(4, 4))``, ``group(add.s(n, n) for n in range(9))``. A group in a group is part of it.
    """

    def __init__(
        self, *canvases: Canvas[AsyncResult[R_co]] | group[R_co] | Iterable[Canvas[AsyncResult[R_co]]]
    ) -> None:
        super().__init__()
        self.tasks: tuple[Canvas[Any], ...] = tuple(
            inner for each in _flat(canvases, "group") for inner in _unlinked(each, group)
        )

    def hosts(self) -> Iterator[Host]:
        return (host for each in self.tasks for host in each.hosts())

    def plan(self, place: Place, draft: Draft) -> Plan[GroupResult[R_co]]:
        own = self._own(place)
        if own.task_id is not None:
            raise InvalidArgumentsError(
                "a group has no result of its own that could have an id; end with a task that takes the list of them"
            )
        # Where somebody waits for all parts, he alone is told of a failure, and once.
        inner = replace(own, errbacks=tuple(self.errbacks) if place.gathered else own.errbacks)
        plans = [each.plan(inner, draft) for each in self.tasks]
        handle: GroupResult[R_co] = GroupResult([each.handle for each in plans], parent=place.parent)
        errbacks, _ = plan_links(place.errbacks if place.gathered else own.errbacks, draft)
        parts = [each.steps for each in plans]
        if not place.gathered:
            return Plan([Parts(parts)], handle, errbacks)
        draft.add(draft.host, draft.host.chords)
        return Plan([Gather(draft.host.chords, new_task_id(draft.host.clock.now()), parts, errbacks)], handle, errbacks)

    def take(self, stamping: Stamping) -> None:
        stamping.parts(self, stamping.visitor.on_group_start, stamping.visitor.on_group_end, of=self)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Self:
        """Give its parts countdowns that rise by `step` seconds from `start` to `stop` (then all over again)."""
        seconds = start
        for each in self.tasks:
            each.set(countdown=seconds)
            seconds += step
            if stop is not None and seconds > stop:
                seconds = start
        return self

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.tasks))})"


class chunks(group[R_co]):  # noqa: N801 - Celery's name
    """The group that `Task.chunks` gives."""

    def group(self) -> Self:
        """Itself: it is sent, skewed and put together as a group."""
        return self


class chord(_Compound[AsyncResult[R_co]]):  # noqa: N801 - Celery's name
    """A group, and a body that is called with the list of its results when all of its parts have ended well.

    ``chord([add.s(1, 1), add.s(2, 2)], total.s())`` or ``chord(parts)(total.s())``, which sends it. The list is in the
    order of the parts. If a part fails, the body is not run: its result is a `ChordError`, and its errbacks are called
    once with that part's `Failure`; the other parts run all the same.
    """

    def __init__(
        self, header: group[Any] | Iterable[Canvas[Any]], body: Canvas[AsyncResult[R_co]] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(body, (Canvas, type(None))):
            raise InvalidArgumentsError(f"a chord's body is a call like task.s(), not {body!r}")
        self.header: group[Any] = header if isinstance(header, group) else group(header)
        self.body = body

    def hosts(self) -> Iterator[Host]:
        yield from self.header.hosts()
        yield from () if self.body is None else self.body.hosts()

    def plan(self, place: Place, draft: Draft) -> Plan[AsyncResult[R_co]]:
        if self.body is None:
            raise InvalidArgumentsError("this chord has no body; write chord(parts, body)")
        return _in_sequence([self.header, self.body], self._own(place), draft)

    def take(self, stamping: Stamping) -> None:
        visitor = stamping.visitor
        stamping.parts(self.header, visitor.on_chord_header_start, visitor.on_chord_header_end, of=self)
        behind = stamping.at(visitor.on_chord_body, self)
        behind.links(self)
        if self.body is not None:
            self.body.take(behind)

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Send it; without a body yet the one argument is the body."""
        if self.body is None and len(args) == 1 and isinstance(args[0], Canvas):
            whole: chord[R_co] = chord(self.header, args[0])
            return whole.set(**self.options).apply_async((), kwargs)
        return self.delay(*args, **kwargs)

    def __repr__(self) -> str:
        return f"chord({self.header!r}, {self.body!r})"


def _in_sequence(canvases: Sequence[Canvas[Any]], place: Place, draft: Draft) -> Plan[Any]:
    """One after the other; what is followed by something is gathered into one value."""
    plans: list[Plan[Any]] = []
    for number, canvas in enumerate(canvases):
        last = number == len(canvases) - 1
        inner = place if number == 0 else Place(preceded=True, parent=plans[-1].handle)
        plans.append(
            canvas.plan(
                replace(
                    inner,
                    task_id=place.task_id if last else None,
                    links=place.links if last else (),
                    errbacks=place.errbacks,
                    gathered=place.gathered or not last,
                ),
                draft,
            )
        )
    steps = plans[0].steps
    for plan in plans[1:]:
        if isinstance(gather := steps[-1], Gather):  # its failure is told to who waits for it
            steps = [*steps[:-1], Gather(gather.topic, gather.id, gather.parts, plan.errbacks)]
        steps = [*steps, *plan.steps]
    return Plan(steps, plans[-1].handle, plans[0].errbacks)


def _flat(canvases: Iterable[Any], what: str) -> Iterable[Canvas[Any]]:
    for each in canvases:
        if isinstance(each, Canvas):
            yield each
        elif isinstance(each, Iterable) and not isinstance(each, (str, bytes, Mapping)):
            yield from _flat(each, what)
        else:
            raise InvalidArgumentsError(f"a {what} is made of calls like task.s(2, 3), not of {each!r}")


def _unlinked(canvas: Canvas[Any], kind: type[chain[Any]] | type[group[Any]]) -> Sequence[Canvas[Any]]:
    """What a canvas of the same kind adds: what is in it, unless it has options of its own."""
    return canvas.tasks if isinstance(canvas, kind) and not canvas.options else (canvas,)
