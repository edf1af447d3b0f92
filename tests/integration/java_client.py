"""A Java service that does what a test says: the other end of ``tests/java/Interop.java``."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus, unquote_plus

from tools import downloads

PROGRAM = downloads.JAVA_TESTS / "Interop.java"
QUICK = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Dslf4j.internal.verbosity=ERROR"]
"""What makes Java start in a second, small, and without a word about its missing logger."""
WITHOUT_RETRIES = -1


@dataclass(frozen=True)
class Received:
    """A message as the Java client gave it."""

    topic: str
    key: str
    value: str
    headers: dict[str, str]


class JavaClient:
    """Its process, which ends when its standard input does, so with the test run at last."""

    def __init__(self, jars: Path, service_url: str) -> None:
        self._process = subprocess.Popen(
            ["java", *QUICK, "-cp", f"{jars}/*", str(PROGRAM), service_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def publish(self, topic: str, value: str, *, key: str = "", **headers: str) -> str:
        """Send the bytes of `value`; in the names of `headers` ``_`` stands for ``-``. Gives the message id."""
        pairs = [word for name, text in headers.items() for word in (name.replace("_", "-"), text)]
        [message_id] = self.ask("publish", topic, value, key, *pairs)
        return message_id

    def publish_orders(self, topic: str, *customers: str) -> list[str]:
        """Send an order for each, in a batch and with a JSON schema."""
        return self.ask("publish-orders", topic, *customers)

    def read_orders(self, topic: str, subscription: str, count: int) -> list[str]:
        """The customers of the next `count` orders, read as Java objects."""
        return self.ask("read-orders", topic, subscription, str(count))

    def subscribe(self, topic: str, subscription: str, *, retries: int = WITHOUT_RETRIES) -> JavaConsumer:
        """A shared consumer; with `retries` (``maxRedeliverCount``) it also has the subscription's retry topic."""
        name = f"{topic} {subscription}"
        self.ask("subscribe", name, topic, subscription, str(retries))
        return JavaConsumer(self, name)

    def close(self) -> None:
        self._process.communicate(timeout=90)

    def ask(self, *words: str) -> list[str]:
        """Have a line obeyed; gives the words of the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(quote_plus, words)).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().decode().rstrip("\n")
        state, *rest = map(unquote_plus, answer.split(" "))
        assert state == "ok", f"{words}: {rest}"
        return rest


class JavaConsumer:
    """A consumer in that process."""

    def __init__(self, client: JavaClient, name: str) -> None:
        self._client = client
        self._name = name

    def receive(self) -> Received:
        """The next message, which must come."""
        answer = self._client.ask("receive", self._name)
        assert answer, "nothing was received"
        topic, key, value, *headers = answer
        return Received(topic, key, value, dict(zip(headers[::2], headers[1::2], strict=True)))

    def acknowledge(self) -> None:
        """``acknowledge`` the message received last."""
        self._client.ask("acknowledge", self._name)

    def nack(self) -> None:
        """``negativeAcknowledge`` it."""
        self._client.ask("nack", self._name)

    def reconsume_later(self, delay: float) -> None:
        """``reconsumeLater`` it, after `delay` seconds."""
        self._client.ask("later", self._name, str(round(delay * 1000)))

    def close(self) -> None:
        self._client.ask("close", self._name)
