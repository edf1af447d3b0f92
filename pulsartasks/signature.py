"""A call that is not sent yet: what `task.s(...)` and `topic.s(...)` give, for a canvas or an outbox."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from inspect import signature
from typing import Any, Protocol, TypeVar

import msgspec
from typing_extensions import Self, Unpack

from pulsartasks.canvas import CallKeywords, Canvas, Draft, Host, Links, Place, Plan, as_arguments, as_links
from pulsartasks.errors import ConfigurationError, InvalidArgumentsError
from pulsartasks.message import LATEST_ETA, LONGEST_ID, RESERVED_PREFIX, STAMPS, Publication
from pulsartasks.options import check_names
from pulsartasks.result import AsyncResult
from pulsartasks.serializers import encode
from pulsartasks.stamping import Stamping
from pulsartasks.steps import Step

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What one call may have of its own."""

    countdown: float | timedelta | None = None
    """Seconds from now before which it must not run."""
    eta: datetime | None = None
    """The same as an instant; must know its time zone."""
    key: str | None = None
    """Instead of what the task's ``key=`` gives."""
    task_id: str | None = None
    """Instead of a fresh UUIDv7; a result of such a call is searched from the oldest one on."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Message properties of the caller's own."""
    expires: float | timedelta | datetime | None = None
    """Seconds from now, or an instant that knows its time zone, after which no attempt is begun; instead of the task's
    own. It is the same for retries, and a countdown does not add to it."""
    ignore_result: bool | None = None
    """Whether no result is kept of it; None: as its task says."""
    link: Links = ()
    """What is called with its result: ``other.s(...)`` or any canvas, or several of them."""
    link_error: Links = ()
    """What is called with a `Failure` if it fails, before the arguments of its own."""

    def changed(self, options: CallKeywords) -> CallOptions:
        """These options, with those in `options` instead.

        Raises:
            InvalidArgumentsError: there is no option of that name.
        """
        try:
            check_names(options, {field.name for field in fields(self)}, what="a call")
        except ConfigurationError as error:
            raise InvalidArgumentsError(str(error)) from error
        for name in ("link", "link_error"):
            if name in options:
                options = {**options, name: as_links(options[name])}  # type: ignore[misc]
        return replace(self, **options)

    def check(self) -> None:
        """Refuse what could not be kept.

        Raises:
            InvalidArgumentsError: both countdown and eta, an instant without time zone, or headers that are not text
                or ours.
        """
        if self.countdown is not None and self.eta is not None:
            raise InvalidArgumentsError("give countdown or eta, not both")
        if not isinstance(self.countdown, (int, float, timedelta, type(None))):
            raise InvalidArgumentsError(f"countdown is seconds or a timedelta, not {self.countdown!r}")
        if not isinstance(self.expires, (int, float, timedelta, datetime, type(None))):
            raise InvalidArgumentsError(f"expires is seconds, a timedelta or a datetime, not {self.expires!r}")
        for name in ("countdown", "eta", "expires"):
            _check_instant(name, getattr(self, name))
        for name in ("key", "task_id"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise InvalidArgumentsError(f"{name} must be text, not {getattr(self, name)!r}")
        if len(self.task_id or "") > LONGEST_ID:
            raise InvalidArgumentsError(f"task_id has {len(self.task_id or ''):,} characters, at most {LONGEST_ID}")
        self._check_headers()

    def _check_headers(self) -> None:
        for name, value in self.headers.items():
            if not all(isinstance(text, str) for text in (name, value)):
                raise InvalidArgumentsError(f"header {name!r}: names and values must be text")
            if name.startswith(RESERVED_PREFIX):
                raise InvalidArgumentsError(f"header {name!r}: names with {RESERVED_PREFIX} are pulsartasks' own")

    def due(self, now: float) -> float | None:
        """The instant before which the call must not run, in seconds since the epoch; None: at once.

        Raises:
            InvalidArgumentsError: it is beyond the year 2100.
        """
        due = _instant(self.countdown if self.eta is None else self.eta, now)
        if due is not None and due > LATEST_ETA:
            raise InvalidArgumentsError("eta or countdown is beyond the year 2100; is it in seconds?")
        return due

    def expiry(self, now: float) -> float | None:
        """The instant from which on no attempt is begun, in seconds since the epoch; None: it never expires."""
        return _instant(self.expires, now)


DEFAULTS = CallOptions()


def _instant(when: float | timedelta | datetime | None, now: float) -> float | None:
    if when is None or isinstance(when, datetime):
        return None if when is None else when.timestamp()
    return now + (when.total_seconds() if isinstance(when, timedelta) else when)


def _check_instant(name: str, when: object) -> None:
    if isinstance(when, datetime) and when.tzinfo is None:
        raise InvalidArgumentsError(f"{name} {when} has no time zone; write datetime.now(timezone.utc) + ...")
    if isinstance(when, float) and not math.isfinite(when):
        raise InvalidArgumentsError(f"{name} is a number of seconds, not {when}")


def key_by(
    function: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any], *, of: str, option: str = "key"
) -> str | None:
    """What a function of the user's gives as the key of a call or event with these arguments.

    Raises:
        InvalidArgumentsError: it does not take them, or raises another error, or gives neither text nor None.
    """
    try:
        key = function(*args, **kwargs)
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        with suppress(TypeError, ValueError):  # of some that are written in C nobody knows what they take
            name += str(signature(function))
        raise InvalidArgumentsError(
            f"{of}: {option}= is called with the same arguments, and {name} raised {error!r}"
        ) from error
    if key is None or isinstance(key, str):
        return key
    raise InvalidArgumentsError(f"{of}: {option}= gave {key!r}; it must give text, e.g. str(...), or None")


class Target(Protocol):
    """What can be called or published to."""

    def compose(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Publication: ...
    def hosts(self) -> Iterator[Host]: ...
    def step(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, draft: Draft, *, preceded: bool
    ) -> tuple[Step, AsyncResult[Any]]: ...


class Signature(Canvas[AsyncResult[R_co]]):
    """A task or topic together with what to send it; ``R_co`` is what the task returns."""

    def __init__(
        self,
        target: Target,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: CallOptions = DEFAULTS,
        *,
        immutable: bool = False,
    ) -> None:
        self.target = target
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.call_options = options
        self.immutable = immutable
        """It keeps its arguments, whatever comes before it."""
        self.stamps: Mapping[str, Any] = {}
        """By name; see `stamp`."""

    @property
    def options(self) -> dict[str, Any]:
        """Those of `call_options` that it was given, and its stamps, as Celery has them."""
        all_options = ((each.name, getattr(self.call_options, each.name)) for each in fields(CallOptions))
        given = {name: value for name, value in all_options if value != getattr(DEFAULTS, name)}
        return {**given, **self.stamps, "stamped_headers": list(self.stamps)} if self.stamps else given

    def publication(self) -> Publication:
        """The message that this call is, with a fresh id each time.

        Raises:
            InvalidArgumentsError: the arguments do not fit.
        """
        publication = self.target.compose(self.args, self.kwargs, self.call_options)
        if not self.stamps:
            return publication
        return msgspec.structs.replace(publication, properties={**publication.properties, **self._label})

    @property
    def _label(self) -> dict[str, str]:
        return {STAMPS: encode(self.stamps, what=f"a stamp of {self!r}").decode()}

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the task's function here and now, as `Task` does."""
        function: Any = self.target
        result: R_co = function(*args, *self.args, **{**self.kwargs, **kwargs})
        return result

    def _begin(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: CallKeywords
    ) -> tuple[Draft, Plan[AsyncResult[R_co]]]:
        if self.immutable and (args or kwargs):
            raise InvalidArgumentsError(f"{self!r} is immutable (made by si()) and takes no further arguments")
        return super()._begin(args, kwargs, options)

    def clone(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> Signature[R_co]:
        """A copy with `args` before its own, and with these kwargs and options too."""
        args, kwargs = as_arguments(args, kwargs)
        copy: Signature[R_co] = Signature(
            self.target,
            (*args, *self.args),
            {**self.kwargs, **kwargs},
            self.call_options.changed(options),
            immutable=self.immutable,
        )
        copy.stamps = self.stamps
        return copy

    def set(self, **options: Unpack[CallKeywords]) -> Self:
        self.call_options = self.call_options.changed(options)
        return self

    def take(self, stamping: Stamping) -> None:
        stamping.links(self)
        self.stamps = stamping.at(stamping.visitor.on_signature, self).over(self.stamps)

    @property
    def links(self) -> Sequence[Canvas[Any]]:
        return as_links(self.call_options.link)

    @property
    def errbacks(self) -> Sequence[Canvas[Any]]:
        return as_links(self.call_options.link_error)

    def hosts(self) -> Iterator[Host]:
        return self.target.hosts()

    def plan(self, place: Place, draft: Draft) -> Plan[AsyncResult[R_co]]:
        args = self.args if self.immutable else (*place.args, *self.args)
        kwargs = self.kwargs if self.immutable else {**self.kwargs, **place.kwargs}
        options = self.call_options.changed(place.options)
        options = replace(
            options,
            task_id=place.task_id or options.task_id,
            link=(*as_links(options.link), *place.links),
            link_error=(*as_links(options.link_error), *place.errbacks),
        )
        step, handle = self.target.step(args, kwargs, options, draft, preceded=place.preceded and not self.immutable)
        if self.immutable:
            step = msgspec.structs.replace(step, immutable=True)
        if self.stamps:
            step = msgspec.structs.replace(step, headers={**step.headers, **self._label})
        handle.parent = place.parent
        if isinstance(place.parent, AsyncResult):
            place.parent.children.append(handle)
        return Plan([step], handle, step.errbacks)

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{getattr(self.target, 'name', self.target)}({', '.join(given)})"
