"""``python -m benchmarks.publisher PEER ACTION COUNT [RATE]``: the calling side of a contender, in its environment.

Prints JSON. Only the standard library, as `benchmarks.probe`.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.probe import Reader, now, setting

PATIENCE = 30.0


def main(peer_name: str, action: str, count: int, rate: float) -> None:
    """Imports the peer, does it and ends at once: what a client library does at exit is not measured."""
    peer = importlib.import_module(f"benchmarks.peers.{peer_name}")
    actions: dict[str, Callable[[Any, int, float], object]] = {
        "one_by_one": one_by_one,
        "fill": fill,
        "alone": alone,
        "paced": paced,
        "command": command,
    }
    figures = actions[action](peer, count, rate)
    print(json.dumps(figures), flush=True)
    os._exit(0)


def one_by_one(peer: Any, count: int, _rate: float) -> dict[str, float]:
    """Publishes one after the other; the first, which connects, is not counted."""
    peer.publish(now())
    began = now()
    for _ in range(count - 1):
        peer.publish(now())
    return {"per_second": (count - 1) / (now() - began)}


def fill(peer: Any, count: int, _rate: float) -> dict[str, float]:
    """Publishes many as fast as the peer can; not measured."""
    if hasattr(peer, "fill"):
        peer.fill(count)
    elif count > 1:
        one_by_one(peer, count, 0)
    return {}


def alone(peer: Any, count: int, _rate: float) -> dict[str, float]:
    """One at a time: the next when the one before has run, and a moment of chance later, so that no poll is met."""
    reader = Reader(Path(setting("folder")))
    chance = random.Random(count)  # noqa: S311 - the same for all
    for _ in range(count):
        before = reader.poll()
        deadline = now() + PATIENCE
        peer.publish(now())
        while reader.poll() == before:
            if now() > deadline:
                raise TimeoutError("a task did not run")
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.005, 0.015))
    return {}


def paced(peer: Any, count: int, rate: float) -> dict[str, float]:
    """Publishes at a rate, whatever the worker does, and says what rate it came to.

    What has become due meanwhile goes out together where the peer can do that, else one by one.
    """
    publish_due = getattr(peer, "fill", None) or (lambda due: [peer.publish(now()) for _ in range(due)])
    publish_due(1)
    began = now()
    sent = 1
    while sent < count:
        due = min(count, int((now() - began) * rate) + 1) - sent
        if due > 0:
            publish_due(due)
            sent += due
        time.sleep(0.002)
    return {"per_second": (count - 1) / (now() - began)}


def command(peer: Any, processes: int, _rate: float) -> list[str]:
    """The words that start its worker."""
    words: list[str] = peer.worker(processes)
    return words


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
