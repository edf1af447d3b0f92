"""All topics of an app: those of its tasks, its event topics, and those by which its processes tell each other things.

What publishes or consumes has their subscriptions from here, and so has ``pulsartasks topics``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pulsartasks.brokers.base import UNPACKED, Packing
from pulsartasks.options import Start
from pulsartasks.schemas import Schema
from pulsartasks.task import Task
from pulsartasks.topic import Topic
from pulsartasks.topics import COUNTER, DEAD_LETTERS, KEEPER, LEADER

CALLS = "calls"
EVENTS = "events"
RETRY = "retry"
DELAYED = "delayed"
DEAD = "dead letters"
RESULTS = "results"
RESULT_STATES = "results-states"
RESULTS_FORGOTTEN = "results-forgotten"
REVOCATIONS = "revocations"
CRASHES = "crashes"
ONCE_DONE = "once-done"
CHORD_PARTS = "chord-parts"
CHORD_BODIES = "chord-bodies"
BEAT_LOG = "beat-log"
UNIQUE_CLAIMS = "unique-claims"
_OWN = {
    RESULTS: KEEPER,
    RESULT_STATES: KEEPER,
    RESULTS_FORGOTTEN: KEEPER,
    REVOCATIONS: KEEPER,
    CRASHES: KEEPER,
    ONCE_DONE: KEEPER,
    UNIQUE_CLAIMS: KEEPER,
    CHORD_PARTS: COUNTER,
    CHORD_BODIES: KEEPER,
    BEAT_LOG: LEADER,
}
"""Topics called ``<app>.<this>``, each with its subscription; a hyphen keeps most from meeting a task's own topic."""

_OF_RESULTS = (RESULTS, RESULT_STATES, RESULTS_FORGOTTEN)


@dataclass(frozen=True, slots=True)
class AppTopic:
    """One topic, as the app's definitions want it."""

    name: str
    """Its full name."""
    kinds: frozenset[str]
    """What is on it; several for the dead letters that are an event topic too, for one."""
    subscriptions: Mapping[str, Start] = field(default_factory=dict)
    partitions: int = 0
    schema: Schema | None = None
    packing: Packing = UNPACKED
    policies: Mapping[str, int] = field(default_factory=dict)
    """See `TopicPolicies`."""

    def joined(self, other: AppTopic) -> AppTopic:
        """Both, where they are one topic; the first one's word counts."""
        return replace(
            self,
            kinds=self.kinds | other.kinds,
            subscriptions={**other.subscriptions, **self.subscriptions},
            packing=other.packing if self.packing == UNPACKED else self.packing,
        )


def catalog(
    app: str,
    qualify: Callable[[str], str],
    topics: Iterable[Topic[Any]],
    tasks: Collection[Task[..., Any]],
    *,
    results: bool,
) -> Mapping[str, AppTopic]:
    """The topics of the app of this name, by their full names; `results`: its results are on one, too."""
    found: dict[str, AppTopic] = {}
    unneeded = {
        *(() if results else _OF_RESULTS),
        *(() if any(task.options.once for task in tasks) else (ONCE_DONE,)),
        *(() if any(task.options.unique_key for task in tasks) else (UNIQUE_CLAIMS,)),
    }
    own = [
        AppTopic(
            qualify(f"{app}.{kind}"),
            frozenset({kind}),
            {subscription: "earliest"},
            packing=Packing(batching=kind in {RESULTS, RESULT_STATES}),
        )
        for kind, subscription in _OWN.items()
        if kind not in unneeded
    ]
    for topic in [*map(_of_events, topics), *(each for task in tasks for each in _of_task(task)), *own]:
        found[topic.name] = found[topic.name].joined(topic) if topic.name in found else topic
    return found


def _of_events(topic: Topic[Any]) -> AppTopic:
    return AppTopic(
        topic.full_name,
        frozenset({EVENTS}),
        dict.fromkeys(topic.subscriptions, "earliest"),
        partitions=topic.partitions,
        schema=topic.registered,
        policies=topic.policies,
    )


def _of_task(task: Task[..., Any]) -> Iterator[AppTopic]:
    topics, options, name = task.topics, task.options, task.subscription
    calls = Packing(options.batching, by_key=options.mode == "key_shared", compression=options.compression)
    copies = Packing(compression=options.compression)
    if task.event_topic is not None:
        yield AppTopic(topics.work, frozenset({EVENTS}), {name: options.start})
        yield AppTopic(topics.calls, frozenset({CALLS}), {name: "earliest"}, packing=calls)
    else:
        yield AppTopic(topics.calls, frozenset({CALLS}), {name: options.start}, packing=calls)
    yield AppTopic(topics.retry, frozenset({RETRY}), {name: "earliest"}, packing=copies)
    yield AppTopic(topics.delayed, frozenset({DELAYED}), {name: "earliest"}, packing=copies)
    if topics.dead_letter is not None:
        yield AppTopic(topics.dead_letter, frozenset({DEAD}), {DEAD_LETTERS: "earliest"}, packing=copies)
