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
            InvalidArgumentsError: both countdown and eta, an eta without time zone, or headers that are not text or
                ours.
        """
        if self.countdown is not None and self.eta is not None:
            raise InvalidArgumentsError("give countdown or eta, not both")
        if self.eta is not None and self.eta.tzinfo is None:
            raise InvalidArgumentsError(f"eta {self.eta} has no time zone; write datetime.now(timezone.utc) + ...")
        if not isinstance(self.countdown, (int, float, timedelta, type(None))):
            raise InvalidArgumentsError(f"countdown is seconds or a timedelta, not {self.countdown!r}")
        if isinstance(self.countdown, float) and not math.isfinite(self.countdown):
            raise InvalidArgumentsError(f"countdown is a number of seconds, not {self.countdown}")
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
        if self.eta is not None:
            due = self.eta.timestamp()
        elif self.countdown is None:
            return None
        else:
            due = now + (self.countdown.total_seconds() if isinstance(self.countdown, timedelta) else self.countdown)
        if due > LATEST_ETA:
            raise InvalidArgumentsError("eta or countdown is beyond the year 2100; is it in seconds?")
        return due


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
