"""How a program that works until it is told to stop is told."""

from __future__ import annotations

import signal
import threading


def stopped_by_signals() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set from now on; only the main thread may ask for it."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # On a thread: this one may hold the event's lock just then, and would wait for itself.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    return stop
