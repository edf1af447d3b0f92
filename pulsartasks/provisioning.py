"""What an app's topics should be, what they are, and the steps from the one to the other.

Nothing is ever taken away: what is there and not in the app is only told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import msgspec

from pulsartasks import catalog
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Administration, Broker
from pulsartasks.catalog import AppTopic
from pulsartasks.errors import AuthorizationError, BrokerError, ConfigurationError
from pulsartasks.options import PolicyKeywords, Start
from pulsartasks.roles import Role, permissions
from pulsartasks.schemas import differences
from pulsartasks.topics import is_persistent, namespace_of, short_name

ADMINISTRATOR = "an administrator of the topic's tenant"
SUBSCRIBER = "a role with the permission 'consume' on the topic"
PUBLISHER = "a role with the permission 'produce' on the topic"
POLICIES = tuple(PolicyKeywords.__annotations__)

Act = Callable[[Broker], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic as the app and the roles want it."""

    topic: AppTopic
    permissions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What each role must be allowed to do with it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as it is with the broker."""

    exists: bool = False
    partitions: int = 0
    subscriptions: Collection[str] = ()
    policies: Mapping[str, int] = field(default_factory=dict)
    schemas: Sequence[str] = ()
    permissions: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One difference; as text it is a line."""

    sign: Literal["+", "~", "?"]
    """``+``: is made; ``~``: is changed; ``?``: is told, and left as it is."""
    what: str
    act: Act | None = field(default=None, repr=False, compare=False)
    allowed_to: str = ADMINISTRATOR
    """Who may do it."""

    @property
    def changes(self) -> bool:
        return self.sign != "?"

    def __str__(self) -> str:
        return f"{self.sign} {self.what}"


def wanted(app: PulsarTasks, roles: Collection[Role] = ()) -> list[Wanted]:
    """All topics that `app` has, and those on which callers of `roles` get their results."""
    allowed = permissions(app, roles)
    topics = app.catalog
    replies = [AppTopic(name, frozenset({"replies"})) for name in allowed if name not in topics]
    return [_lasting(Wanted(topic, allowed.get(topic.name, {}))) for topic in [*topics.values(), *replies]]


def _lasting(wanted: Wanted) -> Wanted:
    """Pulsar forgets a topic with neither partitions nor subscriptions once nobody uses it, and all that was set on it;
    so one partition makes it stay.
    """
    topic = wanted.topic
    if topic.partitions or _has_subscriptions(topic) or not (topic.policies or wanted.permissions):
        return wanted
    return replace(wanted, topic=replace(topic, partitions=1))


def _has_subscriptions(topic: AppTopic) -> bool:
    return is_persistent(topic.name) and bool(topic.subscriptions)


def find(broker: Broker, topics: Collection[Wanted]) -> dict[str, Found]:
    """What the broker has of `topics`.

    Raises:
        AuthorizationError: who asks may not see it, and who may.
        BrokerUnavailableError, BrokerError
    """
    try:
        return {each.topic.name: _find(broker, each) for each in topics}
    except AuthorizationError as error:
        raise AuthorizationError(f"only {ADMINISTRATOR} may see how its topics are set up: {error}") from error


def _find(broker: Broker, wanted: Wanted) -> Found:
    name, administration = wanted.topic.name, broker.administration
    state = broker.inspect(name)
    found = Found() if state is None else Found(True, state.partitions, state.subscriptions)
    if administration is None:
        return found
    policies = {}
    if state is not None and catalog.EVENTS in wanted.topic.kinds:  # no others have any
        policies = {policy: administration.policy(name, policy) for policy in POLICIES}
    return Found(
        found.exists,
        found.partitions,
        found.subscriptions,
        {policy: value for policy, value in policies.items() if value is not None},
        administration.schemas(name) if wanted.topic.schema is not None else (),
        administration.permissions(name) if wanted.permissions else {},
    )


def strangers(app: PulsarTasks, administration: Administration) -> list[Step]:
    """What is called like a topic of `app` and is none."""
    known = app.catalog
    own = app.qualify(f"{app.name}.x")
    there = administration.topics(namespace_of(own))
    return [
        Step("?", f"topic {short_name(name)}: not among the app's definitions")
        for name in sorted(there)
        if name.startswith(own[:-1]) and name not in known
    ]


def steps(wanted: Collection[Wanted], found: Mapping[str, Found], *, administered: bool = True) -> list[Step]:
    """What has to be done, in order, and what is to be told; `administered`: with what only Pulsar has."""
    return [
        step for each in wanted for step in _steps(each, found.get(each.topic.name, Found()), administered=administered)
    ]


def _steps(wanted: Wanted, found: Found, *, administered: bool) -> Iterator[Step]:
    topic = wanted.topic if administered else replace(wanted.topic, partitions=0)
    if topic.partitions or _has_subscriptions(topic) or found.exists:
        yield from _topic(topic, found)
        yield from _subscriptions(topic, found) if is_persistent(topic.name) else ()
    if administered:
        yield from _policies(topic, found)
        yield from _schema(topic, found) if topic.partitions or _has_subscriptions(topic) or found.exists else ()
        yield from _permissions(wanted, found)


def _topic(topic: AppTopic, found: Found) -> Iterator[Step]:
    name, asked, there = topic.name, topic.partitions, found.partitions
    what = f"partitions of {_short(name)}"
    if not found.exists and asked:
        divided = f" with {asked} partition{'' if asked == 1 else 's'}"
        yield Step("+", f"topic {_short(name)}{divided}", _administer(lambda a: a.create_partitions(name, asked)))
    elif not found.exists:
        yield Step("+", f"topic {_short(name)}", lambda broker: broker.declare(name, ()))
    elif asked > there > 0:
        yield Step("~", f"{what}: {there} -> {asked}", _administer(lambda a: a.grow(name, asked)))
    elif asked and asked < there:
        yield Step("?", f"{what}: {there}, not {asked}: there can only be more, never less")
    elif asked and not there:
        yield Step("?", f"{what}: none, not {asked}: it was made without, and only a new topic can have them")


def _subscriptions(topic: AppTopic, found: Found) -> Iterator[Step]:
    for subscription, start in topic.subscriptions.items():
        if subscription not in found.subscriptions:
            what = f"subscription {subscription} on {_short(topic.name)} from the {start}"
            act = partial(_subscribe, topic=topic.name, subscription=subscription, start=start)
            yield Step("+", what, act, SUBSCRIBER)
    for subscription in sorted({*found.subscriptions} - topic.subscriptions.keys()):
        yield Step("?", f"subscription {subscription} on {_short(topic.name)}: not among the app's definitions")


def _subscribe(broker: Broker, *, topic: str, subscription: str, start: Start) -> None:
    broker.declare(topic, [subscription], start=start)


def _policies(topic: AppTopic, found: Found) -> Iterator[Step]:
    for policy in POLICIES:
        before, after = found.policies.get(policy), topic.policies.get(policy)
        what, is_ = f"{policy} of {_short(topic.name)}", _amount(policy, before)
        if after is not None and after != before:
            yield Step("~", f"{what}: {is_} -> {_amount(policy, after)}", _setting(topic.name, policy, after))
        elif after is None and before is not None:
            yield Step("?", f"{what}: {is_}, of which the app says nothing")


def _setting(topic: str, policy: str, value: int) -> Act:
    return _administer(lambda administration: administration.set_policy(topic, policy, value))


def _schema(topic: AppTopic, found: Found) -> Iterator[Step]:
    schema, name = topic.schema, topic.name
    if schema is None or _parsed(schema.definition) in map(_parsed, found.schemas):
        return
    act = _administer(lambda administration: administration.register(name, schema))
    if not found.schemas:
        yield Step("+", f"schema {schema.name} of {_short(name)}", act, PUBLISHER)
        return
    conflicts = differences(found.schemas[-1], schema.definition)
    yield Step(
        "~", f"schema {schema.name} of {_short(name)}: {'; '.join(conflicts) or 'fits the one before'}", act, PUBLISHER
    )


def _permissions(wanted: Wanted, found: Found) -> Iterator[Step]:
    name = wanted.topic.name
    for role, actions in wanted.permissions.items():
        there = found.permissions.get(role, frozenset())
        of_role = f"of {role} on {_short(name)}"
        if actions - there:
            yield Step("+", f"permission {_words(actions - there)} {of_role}", _granting(name, role, actions | there))
        if there - actions:
            yield Step("?", f"permission {_words(there - actions)} {of_role}: more than it needs here")


def _granting(topic: str, role: str, actions: Collection[str]) -> Act:
    return _administer(lambda administration: administration.grant(topic, role, actions))


def carry_out(steps: Collection[Step], broker: Broker) -> Iterator[Step]:
    """Do one step after the other; gives each that is done. What was done already does no harm.

    Raises:
        AuthorizationError: who does it may not do this step, and who may; those before it are done.
        BrokerError: the broker refuses it.
    """
    for step in steps:
        if step.act is None:
            continue
        try:
            step.act(broker)
        except AuthorizationError as error:
            raise AuthorizationError(f"not permitted: {step}; {step.allowed_to} may do it: {error}") from error
        except BrokerError as error:
            raise BrokerError(f"refused: {step}; {error}") from error
        yield step


def _administer(act: Callable[[Administration], None]) -> Act:
    def on(broker: Broker) -> None:
        if broker.administration is None:
            raise ConfigurationError("this broker has no administration")
        act(broker.administration)

    return on


def _amount(policy: str, value: int | None) -> str:
    """A policy's value in words.

    >>> _amount("retention", 90_000), _amount("dispatch_rate", 5), _amount("ttl", None)
    ('1 day 1 h', '5/s', "the namespace's")
    """
    if value is None:
        return "the namespace's"
    if policy == "dispatch_rate":
        return f"{value}/s"
    if value < 0:
        return "for ever"
    parts = []
    for unit, seconds in (("day", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, value = divmod(value, seconds)
        if count:
            parts.append(f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}")
    return " ".join(parts) or "0"


def _words(actions: Collection[str]) -> str:
    return ",".join(sorted(actions))


def _short(topic: str) -> str:
    return topic if not is_persistent(topic) else short_name(topic)


def _parsed(definition: str) -> object:
    return msgspec.json.decode(definition)
