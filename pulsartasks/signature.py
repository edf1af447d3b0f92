"""A call that is not sent yet: what `task.s(...)` and `topic.s(...)` give, e.g. for an outbox."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypedDict

from pulsartasks.errors import ConfigurationError, InvalidArgumentsError
from pulsartasks.message import LATEST_ETA, LONGEST_ID, RESERVED_PREFIX, Publication
from pulsartasks.options import check_names


class CallKeywords(TypedDict, total=False):
    """The options of one call for type checkers; `CallOptions` documents them."""

    countdown: float | timedelta | None
    eta: datetime | None
    key: str | None
    task_id: str | None
    headers: Mapping[str, str]
    expires: float | timedelta | datetime | None


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

    def changed(self, options: CallKeywords) -> CallOptions:
        """These options, with those in `options` instead.

        Raises:
            InvalidArgumentsError: there is no option of that name.
        """
        try:
            check_names(options, {field.name for field in fields(self)}, what="a call")
        except ConfigurationError as error:
            raise InvalidArgumentsError(str(error)) from error
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


def _instant(when: float | timedelta | datetime | None, now: float) -> float | None:
    if when is None or isinstance(when, datetime):
        return None if when is None else when.timestamp()
    return now + (when.total_seconds() if isinstance(when, timedelta) else when)


def _check_instant(name: str, when: object) -> None:
    if isinstance(when, datetime) and when.tzinfo is None:
        raise InvalidArgumentsError(f"{name} {when} has no time zone; write datetime.now(timezone.utc) + ...")
    if isinstance(when, float) and not math.isfinite(when):
        raise InvalidArgumentsError(f"{name} is a number of seconds, not {when}")


def check_key(key: object, *, of: str) -> str | None:
    """`key` itself, as a function of the user's gave it.

    Raises:
        InvalidArgumentsError: it is neither text nor None.
    """
    if key is None or isinstance(key, str):
        return key
    raise InvalidArgumentsError(f"{of}: key= gave {key!r}; it must give text, e.g. str(...), or None")


class Target(Protocol):
    """What can be called or published to."""

    def compose(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Publication: ...


@dataclass(frozen=True, slots=True)
class Signature:
    """A task or topic together with what to send it."""

    target: Target
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: CallOptions = field(default_factory=CallOptions)

    def publication(self) -> Publication:
        """The message that this call is, with a fresh id each time.

        Raises:
            InvalidArgumentsError: the arguments do not fit.
        """
        return self.target.compose(self.args, self.kwargs, self.options)
