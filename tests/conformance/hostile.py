"""Messages that no caller of ours would send, and the tasks of a worker process that must bear them.

The generator is seeded: the same seed gives the same messages. Each has a number in a header, by which a test can tell
what became of it.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.message import Publication

APP = "HOSTILE_APP"
RAN = "HOSTILE_RAN"
NUMBER = "number"
VICTIM = "victim"
"""The short name of a topic that is none of the worker's business."""
LONG_AGO = "2020-01-01T00:00:00+00:00"


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: int = 0


def make_app(name: str, broker: str | None, ran: Path) -> PulsarTasks:
    """A call task in shared mode, one that keeps an order, and the handler of an event; each notes what it runs."""
    app = PulsarTasks(name, broker)
    happened = app.topic("happened", schema=Order, key=lambda order: order.customer, subscriptions=("work",))

    def note(context: TaskContext) -> None:
        # One write to a file opened for appending is whole, whoever else writes.
        with ran.open("ab", buffering=0) as file:
            file.write(f"{context.request.headers.get(NUMBER, '')}\n".encode())

    def act(context: TaskContext, value: Any, count: int = 0) -> Any:
        if count < 0:
            raise OSError("less than nothing")
        note(context)
        return value

    for name_, mode in (("spread", "shared"), ("ordered", "key_shared")):
        options: Any = {"mode": mode, "autoretry_for": (OSError,), "max_retries": 2, "default_retry_delay": 0.0}
        app.task(name=name_, bind=True, **options)(act)

    @app.task(topic=happened, subscription="work", bind=True)
    def handle(context: TaskContext, order: Order) -> None:
        note(context)

    return app


@dataclass(frozen=True)
class Target:
    """A topic to send to, and the task that is behind it."""

    topic: str
    task: str


def targets(app: PulsarTasks) -> list[Target]:
    """Everything that the worker receives from, its topics for retries and delayed calls included."""
    return [
        Target(topic, task.name)
        for task in app.tasks.values()
        for topic in dict.fromkeys((task.topics.work, task.topics.calls, task.topics.retry, task.topics.delayed))
    ]


def messages(app: PulsarTasks, seed: int, count: int, places: Sequence[Target] | None = None) -> list[Publication]:
    """So many small ones, spread over all topics that the worker receives from, or over `places`."""
    random = Random(seed)
    places = places or targets(app)
    return [_message(random, app.name, random.choice(places), f"{seed}-{number}") for number in range(count)]


def big_messages(app: PulsarTasks, seed: int) -> Iterator[Publication]:
    """Some that are as large as they may be."""
    size = 5_000_000
    values = [
        b"[" * size,
        b'{"args":[' + b"[" * size,
        b'{"args":["' + b"x" * size + b'"]}',
        b'{"kwargs":{"' + b"x" * size + b'":1}}',
        b'{"args":[' + b"7," * (size // 2) + b"7]}",
        b'{"args":[[' + b"{}," * (size // 10) + b"{}]]}",
        Random(seed).randbytes(size),
    ]
    for number, (value, task) in enumerate(zip(values, cycle(app.tasks.values()), strict=False)):
        headers = {NUMBER: f"{seed}-big-{number}", "pt-task": task.name}
        yield Publication(task.topics.work, value, properties=headers)
    for header in ("pt-id", "pt-task", "pt-reply-to", "RECONSUMETIMES", "pt-eta", "anything"):
        headers = {NUMBER: f"{seed}-header-{header}", header: "9" * 3_000_000, "pt-published-at": LONG_AGO}
        yield Publication(app.tasks["spread"].topics.work, b'{"value": 1}', properties=headers)
    headers = {NUMBER: f"{seed}-key", "pt-task": "ordered"}
    yield Publication(app.tasks["ordered"].topics.work, b"?", key="k" * 4_000_000, properties=headers)


def _message(random: Random, app: str, target: Target, number: str) -> Publication:
    headers = {NUMBER: number}
    if random.random() < 0.8:
        headers |= {"pt-task": target.task, "pt-id": number}
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        lie = random.choice(_LIES)(random)
        headers |= {name: text.replace("{app}", app) for name, text in lie.items()}
    if headers.get("pt-task", target.task) != target.task:
        headers["pt-published-at"] = LONG_AGO  # else an unknown task is waited for
    return Publication(target.topic, random.choice(_VALUES)(random), random.choice(_KEYS)(random), headers)


def _text(random: Random, longest: int = 30) -> str:
    alphabet = random.choice((string.printable, "\x00\x1b\n\r\x7f", "äß€😀\u202e\ufeff"))
    return "".join(random.choices(alphabet, k=random.randrange(longest)))


def _json(random: Random, depth: int = 0) -> Any:
    if depth > 3 or random.random() < 0.5:
        return random.choice((None, True, -1, 2**63, 1.5e308, "", _text(random), "\x00", "NaN"))
    if random.random() < 0.5:
        return [_json(random, depth + 1) for _ in range(random.randrange(4))]
    return {_text(random): _json(random, depth + 1) for _ in range(random.randrange(4))}


def _call(random: Random) -> bytes:
    call: Any = random.choice(
        (
            {"args": [_json(random)]},
            {"args": [_json(random), random.choice((1, -1))]},
            {"args": [], "kwargs": {"value": _json(random), "count": _json(random)}},
            {"args": [_json(random)] * 5},
            {"args": {"value": 1}},
            {"args": None, "kwargs": []},
            {"kwargs": {"value": 1, "self": 2, "context": 3}},
            {"value": _json(random)},
            {"value": _json(random), "count": -5},
            {"customer": "ada", "amount": random.choice((1, "1", 1.5, None, 2**70))},
            {"customer": _json(random)},
            [{"args": [1]}],
        )
    )
    return msgspec.json.encode(call)


def _broken(random: Random) -> bytes:
    value = bytearray(_call(random))
    for _ in range(random.randrange(1, 4)):
        value[random.randrange(len(value))] = random.randrange(256)
    return bytes(value[: random.randrange(1, len(value) + 1)])


_VALUES: list[Callable[[Random], bytes]] = [
    _call,
    _call,
    _call,
    _broken,
    _broken,
    lambda random: random.randbytes(random.randrange(200)),
    lambda random: msgspec.json.encode(_json(random)),
    lambda random: b'{"args":[' + random.choice((b"[", b'{"a":')) * random.choice((900, 20_000)),
    lambda random: b'{"args":[' + b"[" * 900 + b"]" * 900 + b"]}",
    lambda random: random.choice(
        (
            b"",
            b"NaN",
            b'{"args":[NaN]}',
            b'{"args":[1e999]}',
            b'{"args":[-Infinity]}',
            b'{"args":[' + b"9" * 5_000 + b"]}",
            b'{"args":["\\ud800"]}',
            b'{"args":["\xed\xa0\x80"]}',
            b'{"kwargs":{"\xff":1}}',
            b'{"value":1,"\xff":1}',
            b'{"args":[1],"args":[2]}',
            b"\xef\xbb\xbf{}",
            b"cos\nsystem\n(S'true'\ntR.",
        )
    ),
]

_INSTANTS = (
    "yesterday",
    "0001-01-01T00:00:00",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59",
    "9999-12-31T23:59:59-23:59",
    "2999-01-01",
    "1969-12-31T23:59:59+00:00",
)

_REPLIES = (
    "",
    "no topic at all!",
    "persistent://public/default/{app}.victim",
    "{app}.victim",
    "non-persistent://public/default/{app}.victim",
    "persistent://public/default/{app}.spread",
    "non-persistent://nobody/here/{app}.results-1",
    "non-persistent://public/default/{app}.results-1-partition-7",
    "non-persistent://public/default/{app}.results-" + "f" * 32,
    "r" * 9_000,
)

_LIES: list[Callable[[Random], dict[str, str]]] = [
    lambda random: {_text(random) or "x": _text(random, 300)},
    lambda random: {"pt-task": random.choice(("", "spread", "ordered", "handle", "nobody", "__init__", "x" * 9_000))},
    lambda random: {"pt-id": random.choice(("", "same", " ", "../../etc/passwd", "i" * 9_000, _text(random)))},
    lambda random: {"pt-eta": random.choice(("-5", "soon", "1e9", "٣", "9" * 15, "9" * 18, "9" * 400, "1" * 12))},
    lambda random: {"RECONSUMETIMES": random.choice(("1", "-1", "many", "9" * 17, "9" * 18, "9" * 400, "0x10"))},
    lambda random: {"REAL_TOPIC": random.choice(("", "persistent://public/default/else", "no topic", "t" * 9_000))},
    lambda random: {"REAL_SUBSCRIPTION": random.choice(("work", "", "else", _text(random)))},
    lambda random: {"ORIGIN_MESSAGE_ID": _text(random), "DELAY_TIME": random.choice(("-1", "9" * 30, "x"))},
    lambda random: {"pt-claim": random.choice(("", "{}", "null", '{"key":"../x","size":1,"sha256":"0"}', "[" * 9_000))},
    lambda random: {"ORIGIN_MESSAGE_IDY_TIME": "9" * random.choice((1, 9_000)), "__AVRO_READ_OFFSET__": "-1"},
    lambda random: {"pt-published-at": random.choice(_INSTANTS)},
    lambda random: {"pt-reason": _text(random), "pt-traceback": _text(random, 3_000), "pt-attempts": "9" * 30},
    lambda random: {"pt-cut": "-1", "pt-exception-type": _text(random), "pt-failed-at": _text(random)},
    lambda random: {"pt-reply-to": random.choice(_REPLIES)},
]

_KEYS: list[Callable[[Random], str | None]] = [
    lambda random: None,
    lambda random: "",
    lambda random: f"k{random.randrange(20)}",
    _text,
    lambda random: "k" * 5_000,
]


def __getattr__(name: str) -> PulsarTasks:
    if name != "app":
        raise AttributeError(name)
    return make_app(os.environ[APP], None, Path(os.environ[RAN]))
