"""A rate limit lets one thread after the other go on, evenly, and takes no turn from them in vain."""

from __future__ import annotations

import threading
import time

from pulsartasks.worker.rate_limit import RateLimit


def test_turns_are_an_interval_apart() -> None:
    limit, began = RateLimit(0.05), time.monotonic()

    for _ in range(5):
        assert limit.take(lambda: "message", threading.Event()) == "message"

    assert time.monotonic() - began >= 0.2


def test_turn_that_brought_nothing_is_not_used_up() -> None:
    limit = RateLimit(3600)

    assert limit.take(lambda: None, threading.Event()) is None
    assert limit.take(lambda: "message", threading.Event()) == "message"


def test_thread_that_waits_for_its_turn_is_told_to_stop() -> None:
    limit, stopping = RateLimit(3600), threading.Event()
    limit.take(lambda: "message", stopping)
    threading.Timer(0.1, stopping.set).start()

    assert limit.take(lambda: "another", stopping) is None
