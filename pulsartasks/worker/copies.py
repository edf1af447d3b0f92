"""Copies that arrive twice: a worker died after it had published a retry and before it acknowledged the original.

The original is then delivered again, fails again and is copied again. The two copies tell of the same original and
the same attempt but are different messages, and whoever gets both runs one of them.
"""

from __future__ import annotations

import threading
import time
from typing import TypeAlias

from pulsartasks import message
from pulsartasks.topics import is_persistent
from pulsartasks.worker.run import Run

REMEMBERED = 10_000
REMEMBERED_FOR = 600.0
"""A copy is remembered for so many others, or so many seconds, and for twice that at most."""

_Key: TypeAlias = tuple[str, str, str, str]


class Copies:
    """Which copies began to run in this process; shared by all its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._young: dict[_Key, str] = {}
        self._old: dict[_Key, str] = {}
        self._turned = time.monotonic()

    def is_second(self, run: Run) -> bool:
        """Whether another copy of the same attempt began here; one that is only delivered again is still the first.

        By the original message and not by the task's id alone: a dead letter that was replayed has that id too, and
        begins to count its attempts anew.
        """
        headers = run.headers
        origin, topic = headers.get(message.ORIGIN_MESSAGE_ID), headers.get(message.REAL_TOPIC, "")
        if origin is None or not is_persistent(topic):  # others have no ids of their own
            return False
        key = (run.request.subscription, headers.get(message.TASK_ID, ""), origin, headers[message.ATTEMPT])
        with self._lock:
            known = self._young.get(key) or self._old.get(key)
            if known is None:
                self._young[key] = run.delivery.message_id
                if len(self._young) >= REMEMBERED or time.monotonic() - self._turned > REMEMBERED_FOR:
                    self._young, self._old = {}, self._young
                    self._turned = time.monotonic()
        return known is not None and known != run.delivery.message_id
