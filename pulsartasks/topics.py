"""Names of topics: what a user writes, what the broker is told, and the companions of a subscription.

The companions carry the names that the Java client gives them, so that tools and other languages find them:

>>> retry_topic("persistent://public/default/shop.pay", "billing")
'persistent://public/default/shop.pay-billing-RETRY'
"""

from __future__ import annotations

import re
from collections.abc import Collection

from pulsartasks.errors import ConfigurationError

DEFAULT_NAMESPACE = "public/default"
DEAD_LETTERS = "dead-letters"
"""The subscription that keeps a dead-letter topic's messages until they are replayed or purged."""
KEEPER = "keeper"
"""The subscription that nobody reads and that so keeps a topic's messages until it is trimmed."""
COUNTER = "counter"
"""The subscription of whoever counts the parts of an app's chords."""
LEADER = "beat"
"""The subscription of the copy of beat that leads."""
TOGETHER = "-together-"
"""In the name of a caller's topic: it takes several results in one message, as a JSON list."""

_LOCAL_NAME = re.compile(r"[\w.@:+=%-]+")
_FULL_NAME = re.compile(r"(persistent|non-persistent)://[\w.-]+/[\w.-]+/[\w.@:+=%-]+")
_REPLY_NAME = re.compile(r"[0-9A-Za-z-]{1,55}")
_NAMESPACE = re.compile(r"[\w.-]+/[\w.-]+")


def qualify(name: str, *, app: str, namespace: str = DEFAULT_NAMESPACE) -> str:
    """The full name of the topic that a user calls `name` in the app called `app`.

    >>> qualify("mail", app="shop")
    'persistent://public/default/shop.mail'
    >>> qualify("shop.order-created", app="billing")
    'persistent://public/default/shop.order-created'
    >>> qualify("non-persistent://acme/live/ticks", app="shop")
    'non-persistent://acme/live/ticks'

    Raises:
        ConfigurationError: the name has characters that a topic cannot have.
    """
    if isinstance(name, str) and "://" in name:
        if _FULL_NAME.fullmatch(name) is None:
            raise ConfigurationError(f"{name!r} is not a topic name; write persistent://TENANT/NAMESPACE/TOPIC")
        return name
    if not is_name(name):
        raise ConfigurationError(f"{name!r} is not a topic name; use letters, digits and . _ - only")
    local = name if "." in name else f"{app}.{name}"
    return f"persistent://{check_namespace(namespace)}/{local}"


def is_name(text: object) -> bool:
    """Whether `text` can be a topic's short name, or a subscription's.

    >>> is_name("billing"), is_name("a b"), is_name("")
    (True, False, False)
    """
    return isinstance(text, str) and _LOCAL_NAME.fullmatch(text) is not None


def is_topic(text: object) -> bool:
    """Whether `qualify` takes `text`.

    >>> is_topic("mail"), is_topic("persistent://acme/live/mail"), is_topic("acme/live/mail")
    (True, True, False)
    """
    return is_name(text) or (isinstance(text, str) and _FULL_NAME.fullmatch(text) is not None)


def check_several(names: Collection[str], *, option: str) -> None:
    """Refuse a text where several names are wanted: its letters would be taken for them.

    >>> check_several("mail", option="subscriptions")
    Traceback (most recent call last):
    ...
    pulsartasks.errors.ConfigurationError: subscriptions= takes several names; for one write subscriptions=('mail',)
    """
    if isinstance(names, str):
        raise ConfigurationError(f"{option}= takes several names; for one write {option}=({names!r},)")


def check_namespace(namespace: str) -> str:
    """`namespace` itself, if it reads TENANT/NAMESPACE; else a `ConfigurationError`."""
    if _NAMESPACE.fullmatch(namespace) is None:
        raise ConfigurationError(f"{namespace!r} is not a namespace; write TENANT/NAMESPACE, e.g. {DEFAULT_NAMESPACE}")
    return namespace


def retry_topic(topic: str, subscription: str) -> str:
    """Where a subscription's messages wait for their next attempt."""
    return f"{topic}-{subscription}-RETRY"


def dead_letter_topic(topic: str, subscription: str) -> str:
    """Where a subscription's messages are kept that were given up."""
    return f"{topic}-{subscription}-DLQ"


def delayed_topic(topic: str, subscription: str) -> str:
    """Where calls with an eta wait, so that the work topic's backlog means work that is due."""
    return f"{topic}-{subscription}-DELAYED"


def call_topic(topic: str, subscription: str) -> str:
    """Where direct calls (`.delay()`) of a handler of an event topic go."""
    return f"{topic}-{subscription}-CALL"


def reply_topic(results: str, name: str) -> str:
    """Where results are pushed to callers of this name, of those that are kept on the topic `results`.

    >>> reply_topic("persistent://public/default/shop.results", "web")
    'non-persistent://public/default/shop.results-together-web'

    Raises:
        ConfigurationError: no worker would reply to that.
    """
    if _REPLY_NAME.fullmatch(name) is None or "-partition-" in name:
        raise ConfigurationError(f"{name!r} cannot end a reply topic's name; use up to 55 letters, digits and -")
    return f"{volatile_topic(results)}{TOGETHER}{name}"


def durable_topic(topic: str) -> str:
    """The topic of the same name that stores its messages."""
    return topic.replace("non-persistent://", "persistent://", 1)


def volatile_topic(topic: str) -> str:
    """The topic of the same name that stores nothing.

    >>> volatile_topic("persistent://public/default/shop.pay")
    'non-persistent://public/default/shop.pay'
    """
    return topic if not is_persistent(topic) else f"non-{topic}"


def is_persistent(topic: str) -> bool:
    return topic.startswith("persistent://")


def namespace_of(topic: str) -> str:
    """The namespace of a topic given by its full name.

    >>> namespace_of("persistent://public/default/shop.pay")
    'public/default'
    """
    return topic.partition("://")[2].rpartition("/")[0]


def short_name(topic: str) -> str:
    """The topic as a person says it: the last part of its full name.

    >>> short_name("persistent://public/default/shop.pay")
    'shop.pay'
    """
    return topic.rsplit("/", 1)[-1]
