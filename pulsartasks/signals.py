"""Signals, under Celery's names: functions that are told of what happens, each app's own.

A receiver is called in the thread where it happens, with keyword arguments. What it raises is logged and changes
nothing; what is to change something is middleware.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import msgspec
import structlog

from pulsartasks.errors import ConfigurationError, PulsarTasksError
from pulsartasks.message import TASK, TASK_ID, Publication
from pulsartasks.middleware.base import Publish

F = TypeVar("F", bound=Callable[..., object])

_log = structlog.get_logger("pulsartasks")


class Signal:
    """One kind of thing that happens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._receivers: tuple[tuple[Callable[..., object], object], ...] = ()

    @property
    def connected(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._receivers)

    @overload
    def connect(self, receiver: F, /, *, sender: object = None) -> F: ...
    @overload
    def connect(self, receiver: None = None, /, *, sender: object) -> Callable[[F], F]: ...
    def connect(self, receiver: Callable[..., object] | None = None, /, *, sender: object = None) -> Any:
        """Call `receiver` from now on: ``signal.connect(function)``, or as a decorator, ``@signal.connect``.

        It is kept, and called once though it is connected twice.

        Args:
            receiver: takes keyword arguments, among them ``**kwargs`` for those that will be added.
            sender: a task or its name: only of that one.

        Raises:
            ConfigurationError: the receiver could not be called so.
        """
        if receiver is None:
            return lambda function: self.connect(function, sender=sender)
        _check(receiver, self.name)
        entry = (receiver, _name(sender))
        if entry not in self._receivers:
            self._receivers = (*self._receivers, entry)
        return receiver

    def disconnect(self, receiver: Callable[..., object], *, sender: object = None) -> bool:
        """Call it no more; whether it was connected, for that sender."""
        before = self._receivers
        self._receivers = tuple(entry for entry in before if entry != (receiver, _name(sender)))
        return self._receivers != before

    def send(self, sender: object, **arguments: Any) -> Sequence[BaseException]:
        """Tell all who want to know of `sender`, in the order in which they were connected; gives what they raised."""
        name = _name(sender)
        raised: list[BaseException] = []
        for receiver, wanted in self._receivers:
            if wanted is None or wanted == name:
                try:
                    receiver(sender=sender, signal=self, **arguments)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - whoever is only told must not do any harm
                    told = getattr(receiver, "__qualname__", repr(receiver))
                    _log.exception("signal.failed", signal=self.name, receiver=told)
                    raised.append(error)
        return raised

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"


class Signals:
    """The signals of one app: ``app.signals.task_failure.connect(alert)``."""

    def __init__(self) -> None:
        self.before_task_publish = Signal("before_task_publish")
        self.after_task_publish = Signal("after_task_publish")
        self.task_received = Signal("task_received")
        self.task_prerun = Signal("task_prerun")
        self.task_postrun = Signal("task_postrun")
        self.task_success = Signal("task_success")
        self.task_failure = Signal("task_failure")
        self.task_retry = Signal("task_retry")
        self.task_revoked = Signal("task_revoked")
        self.task_internal_error = Signal("task_internal_error")
        self.task_unknown = Signal("task_unknown")
        self.task_rejected = Signal("task_rejected")
        self.import_modules = Signal("import_modules")
        self.worker_init = Signal("worker_init")
        self.worker_ready = Signal("worker_ready")
        self.worker_shutting_down = Signal("worker_shutting_down")
        self.worker_shutdown = Signal("worker_shutdown")
        self.worker_process_init = Signal("worker_process_init")
        self.worker_process_shutdown = Signal("worker_process_shutdown")
        self.beat_init = Signal("beat_init")
        self.setup_logging = Signal("setup_logging")
        self.after_setup_logger = Signal("after_setup_logger")
        self.after_setup_task_logger = Signal("after_setup_task_logger")

    def __getattr__(self, name: str) -> Signal:
        known = list(vars(self))
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}"
        raise AttributeError(f"there is no signal {name!r}; {hint}")

    @property
    def of_tasks(self) -> bool:
        """Whether anybody wants to know what becomes of messages."""
        return any(signal.connected for name, signal in vars(self).items() if name.startswith("task_"))

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        """Send calls and events by `call_next`, and tell of the calls before it, and of those that it confirmed."""
        if not (self.before_task_publish.connected or self.after_task_publish.connected):
            return call_next(publications)
        sent = [self._before(publication) for publication in publications]
        outcomes = call_next(sent)
        for publication, outcome in zip(sent, outcomes, strict=True):
            if TASK in publication.properties and not isinstance(outcome, PulsarTasksError):
                self.after_task_publish.send(publication.properties[TASK], **_told(publication, publication.properties))
        return outcomes

    def _before(self, publication: Publication) -> Publication:
        if TASK not in publication.properties:
            return publication
        headers = dict(publication.properties)
        self.before_task_publish.send(headers[TASK], **_told(publication, headers))
        return msgspec.structs.replace(publication, properties=headers)


def _told(publication: Publication, headers: Any) -> dict[str, Any]:
    return {
        "task_id": publication.properties[TASK_ID],
        "body": msgspec.json.decode(publication.value),
        "headers": headers,
        "routing_key": publication.topic,
    }


def _name(sender: object) -> object:
    """What senders are told apart by: a task by its name, so that a copy of it is the same."""
    return getattr(sender, "name", sender)


def _check(receiver: Callable[..., object], signal: str) -> None:
    name = getattr(receiver, "__qualname__", repr(receiver))
    if not callable(receiver) or inspect.iscoroutinefunction(receiver):
        raise ConfigurationError(f"signal {signal}: {name} is no plain function; connect one")
    parameters = inspect.signature(receiver).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ConfigurationError(f"signal {signal}: {name} needs **kwargs as its last parameter, for what it ignores")
