"""One attempt at one message, as the parts of a worker hand it on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from pulsartasks import message
from pulsartasks.brokers.base import Delivery
from pulsartasks.crashes import CrashStory
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Request
from pulsartasks.results.base import Progress
from pulsartasks.steps import STARMAP
from pulsartasks.task import Task

Key: TypeAlias = tuple[str, str, str]
"""Subscription, task, and the id that all copies of a message have in common."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a worker does with the messages that one subscription gets from one topic."""

    task: Task[..., Any]
    """The task of a message that does not name one; also says where retries and dead letters go."""
    by_name: dict[str, Task[..., Any]]
    """The tasks a message on this topic may name."""

    def starmap(self, name: str) -> Task[..., Any] | None:
        """The task that calls another one for each of a list, by its name; made when its first message comes."""
        one = self.by_name.get(name.removesuffix(STARMAP))
        if one is None or not name.endswith(STARMAP) or one.options.batch is not None:
            return None
        return self.by_name.setdefault(name, one.each)

    def headers(self, delivery: Delivery) -> Mapping[str, str]:
        """The message's headers as they concern the task.

        On an event topic everything is for its one handler. A message that names another task is the dead letter of a
        call, whose result is none of the handler's.
        """
        event = self.task.event_topic
        if event is None or delivery.topic != event.full_name or message.TASK not in delivery.properties:
            return delivery.properties
        others = {message.TASK_ID, message.REPLY_TO}
        kept = {name: value for name, value in delivery.properties.items() if name not in others}
        return {**kept, message.TASK: self.task.name}


def first_published(headers: Mapping[str, str], published_at: float) -> float:
    """When a message that was published at `published_at` was so before any retry, in seconds since the epoch."""
    try:
        first = datetime.fromisoformat(headers[message.PUBLISHED_AT]).timestamp()
    except (KeyError, ValueError, OverflowError):  # it is no copy, or somebody else wrote that header
        return published_at
    return min(max(first, 0.0), published_at)  # nobody has more patience by lying


class Run(msgspec.Struct, frozen=True):  # a Struct, since one is made for every message
    """One attempt about to be made, and what settling it needs to know."""

    delivery: Delivery
    headers: Mapping[str, str]
    route: Route
    task: Task[..., Any] | None
    """None if the message names a task that is not known here."""
    request: Request
    in_place: int
    """Attempts made without the broker, which its message does not tell of."""
    name: str
    """Under which it is known in the reports of crashes."""
    wants_result: bool
    """Whether it is a call whose result is kept."""
    story: CrashStory | None = None
    """What they say of it."""
    unreadable: PulsarTasksError | None = None
    """Why its arguments are not known."""
    began: float = msgspec.field(default_factory=time.perf_counter)
    """When it was read, by the performance counter."""
    progress: Progress | None = None
    """What the task told last, once it has ended."""

    @property
    def first_published(self) -> float:
        """When the message was published before any retry, in seconds since the epoch."""
        return first_published(self.headers, self.delivery.published_at)

    @property
    def once(self) -> bool:
        """Whether its success is recorded."""
        return self.task is not None and self.task.options.once

    @property
    def unique_key(self) -> str | None:
        """What it is the only call of, until it has ended."""
        return self.headers.get(message.UNIQUE)

    @property
    def reply_to(self) -> str | None:
        """Where its caller hears of the result."""
        return self.headers.get(message.REPLY_TO)

    @property
    def wants_error(self) -> bool:
        """Whether its result is kept if it is a failure."""
        stores = self.task is not None and self.task.options.store_errors_even_if_ignored
        return self.wants_result or (stores and self.headers.get(message.TASK_ID) == self.request.id)


def run_key(run: Run) -> Key:
    """What all copies of a message have in common: the executor gives them one id, the call's or the first one's."""
    return run.request.subscription, run.request.task, run.request.id
