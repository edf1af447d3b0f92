"""What was published while a test ran."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from pulsartasks.app import PulsarTasks
from pulsartasks.errors import InvalidArgumentsError, PulsarTasksError
from pulsartasks.message import OURS, REASON, TASK, TASK_ID, Publication, read_eta
from pulsartasks.middleware.base import Middleware, Publish
from pulsartasks.published import Published
from pulsartasks.revocation import Notice
from pulsartasks.task import Task
from pulsartasks.topic import Topic

Target = Task[..., Any, Any] | Topic[Any]


class Recorder(Middleware):
    """Keeps what the app publishes; what the worker sends again (retries, dead letters) is no publication."""

    def __init__(self, app: PulsarTasks) -> None:
        self._app = app
        self._sent: list[Publication] = []
        self.revoked: list[str] = []
        """Ids of the calls that were revoked."""

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        outcomes = call_next(publications)
        for publication, outcome in zip(publications, outcomes, strict=True):
            if isinstance(outcome, PulsarTasksError):
                continue
            if publication.topic == self._app.revocations:
                self.revoked.append(Notice.read(publication.value).id)
            self._sent.append(publication)
        return outcomes

    def published(self, target: Target | None = None) -> list[Published]:
        """Of `target`, or all, in the order in which it was sent."""
        return [published for _, published in self._read(target)]

    def find(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Published:
        """The last one of `target` with these arguments, or with any if none are given.

        Raises:
            AssertionError: there is none.
            InvalidArgumentsError: it could never be sent with these arguments.
        """
        if not args and not kwargs:
            if sent := self.published(target):
                return sent[-1]
            raise AssertionError(f"{target.name} was not published; {self._story()}")
        wanted = _travelled(target, args, kwargs)
        for _, published in reversed(list(self._read(target))):
            if _arguments(target, published) == _arguments(target, wanted):
                return published
        raise AssertionError(f"{wanted} was not published; {self._story()}")

    def _story(self) -> str:
        sent = self.published()
        return "\n  ".join(["what was published:", *map(str, sent)]) if sent else "nothing was published"

    def _read(self, target: Target | None) -> Iterator[tuple[Target, Published]]:
        topics = self._app.topics
        seen = set()  # a worker moves what was delayed on to where it runs
        for publication in list(self._sent):
            headers = publication.properties
            if REASON in headers:
                continue
            task, topic = self._app.tasks.get(headers.get(TASK, "")), topics.get(publication.topic)
            if task is not None and headers[TASK_ID] not in seen:
                seen.add(headers[TASK_ID])
                if target is None or (isinstance(target, Task) and target.name == task.name):
                    yield task, _published(task.name, publication, *task.codec.decode(publication.value))
            elif task is None and topic is not None and target in (None, topic):
                yield topic, _published(topic.name, publication, [topic.codec.decode(publication.value)], {})


def _published(name: str, publication: Publication, args: Sequence[Any], kwargs: dict[str, Any]) -> Published:
    eta = read_eta(publication.properties)
    return Published(
        name=name,
        args=tuple(args),
        kwargs=kwargs,
        id=publication.properties.get(TASK_ID, ""),
        key=publication.key,
        eta=datetime.fromtimestamp(eta, timezone.utc) if eta else None,
        headers={name: value for name, value in publication.properties.items() if name not in OURS},
    )


def _travelled(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Published:
    """The same as it would arrive."""
    if isinstance(target, Topic):
        if len(args) != 1 or kwargs:
            raise InvalidArgumentsError(f"an event of {target.name} has exactly one payload")
        return Published(target.name, (target.codec.decode(target.codec.encode(args[0])),))
    decoded, keywords = target.codec.decode(target.codec.encode(args, kwargs))
    return Published(target.name, tuple(decoded), keywords)


def _arguments(target: Target, published: Published) -> dict[str, Any]:
    """By the names of the parameters, with their defaults: however they were given."""
    if isinstance(target, Topic):
        return {"payload": published.args[0]}
    signature = inspect.signature(target.function)
    parameters = list(signature.parameters.values())[1 if target.options.bind else 0 :]
    travelling = signature.replace(parameters=[p for p in parameters if p.name not in target.injected])
    bound = travelling.bind(*published.args, **published.kwargs)
    bound.apply_defaults()
    return bound.arguments
