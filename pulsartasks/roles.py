"""What the roles of an app's processes must be allowed to do, and nothing beyond it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pulsartasks import catalog
from pulsartasks.app import PulsarTasks
from pulsartasks.errors import ConfigurationError
from pulsartasks.topics import reply_topic

_PRODUCE, _CONSUME = frozenset({"produce"}), frozenset({"consume"})
_BOTH = _PRODUCE | _CONSUME
_EVERYTHING = frozenset(
    {
        *(catalog.CALLS, catalog.EVENTS, catalog.RETRY, catalog.DELAYED, catalog.DEAD, catalog.RESULTS),
        *(catalog.RESULT_STATES, catalog.RESULTS_FORGOTTEN, catalog.UNIQUE_CLAIMS),
        *(catalog.REVOCATIONS, catalog.CRASHES, catalog.ONCE_DONE, catalog.CHORD_PARTS, catalog.CHORD_BODIES),
    }
)
_SENT = (catalog.CALLS, catalog.DELAYED, catalog.EVENTS, catalog.REVOCATIONS, catalog.CHORD_PARTS)
DUTIES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "call": {
        **dict.fromkeys(_SENT, _PRODUCE),
        **dict.fromkeys((catalog.RESULTS, catalog.RESULT_STATES), _CONSUME),
        **dict.fromkeys((catalog.RESULTS_FORGOTTEN, catalog.UNIQUE_CLAIMS), _BOTH),
    },
    "tail": {catalog.EVENTS: _CONSUME},
    "watch": dict.fromkeys((catalog.CALLS, catalog.EVENTS), _CONSUME),
    "work": dict.fromkeys(_EVERYTHING, _BOTH),
    "beat": {
        **dict.fromkeys((catalog.CALLS, catalog.EVENTS, catalog.CHORD_PARTS), _PRODUCE),
        **dict.fromkeys((catalog.RETRY, catalog.DELAYED, catalog.BEAT_LOG), _BOTH),
    },
}
"""What each duty does with the kinds of topics. ``call``: call tasks, wait for results, revoke, publish events;
``tail``: follow events; ``watch``: see how long backlogs are, which Pulsar shows to who may consume; ``work``: be a
worker, call, and see to dead letters; ``beat``: be ``pulsartasks beat``."""


@dataclass(frozen=True, slots=True)
class Role:
    """A role, as tokens and certificates prove it, and what its processes do."""

    name: str
    duties: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Role:
        """The role that a person writes as ROLE=DUTY,...

        >>> Role.parse("web=call,tail") == Role("web", frozenset({"call", "tail"}))
        True

        Raises:
            ConfigurationError: it is not written so, or there is no such duty.
        """
        name, _, duties = text.rpartition("=")
        chosen = frozenset(duty.strip() for duty in duties.split(","))
        if not name or not chosen <= DUTIES.keys():
            raise ConfigurationError(f"role {text!r}: write ROLE=DUTY,... with duties among {', '.join(DUTIES)}")
        return cls(name, chosen)

    @property
    def reply_name(self) -> str:
        """What its processes have to have as ``PULSARTASKS_REPLY_TO``, so that they may hear of results.

        >>> Role("team web", frozenset()).reply_name
        'team-web'
        """
        return re.sub(r"[^0-9A-Za-z-]", "-", self.name)

    def actions(self, kinds: Collection[str]) -> frozenset[str]:
        """What it must be allowed to do with a topic that has messages of these kinds."""
        return frozenset().union(*(DUTIES[duty].get(kind, ()) for duty in self.duties for kind in kinds))


def permissions(app: PulsarTasks, roles: Collection[Role]) -> dict[str, dict[str, frozenset[str]]]:
    """For each topic what each role must be allowed to do with it."""
    allowed: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for topic in app.catalog.values():
        for role in roles:
            if actions := role.actions(topic.kinds):
                allowed[topic.name][role.name] = actions
    for caller in roles:
        if not caller.duties & {"call", "work"}:
            continue
        replies = allowed[reply_topic(app.own_topic(catalog.RESULTS), caller.reply_name)]
        for worker in roles:
            if "work" in worker.duties:
                replies[worker.name] = replies.get(worker.name, frozenset()) | _PRODUCE
        replies[caller.name] = replies.get(caller.name, frozenset()) | _CONSUME
    return dict(allowed)
