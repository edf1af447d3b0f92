"""The notice that a task is revoked: what travels on ``<app>.revoked``, which every worker reads."""

from __future__ import annotations

import msgspec

from pulsartasks.errors import UnreadableMessageError
from pulsartasks.message import Publication

KEPT = 7 * 86_400.0
"""Seconds that a notice lives; that of a delayed call lives so long after the call is due."""


class Notice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One revoked task."""

    id: str
    until: float
    """Seconds since the epoch from which on nobody needs to know any more."""
    terminate: bool = False
    """Whether it is also to be interrupted where it runs."""

    @classmethod
    def of(cls, task_id: str, *, terminate: bool, eta: float | None, now: float) -> Notice:
        return cls(task_id, max(now, eta or 0.0) + KEPT, terminate)

    @classmethod
    def read(cls, value: bytes) -> Notice:
        """The notice that `value` is.

        Raises:
            UnreadableMessageError: it is none.
        """
        try:
            return msgspec.json.decode(value, type=cls)
        except msgspec.MsgspecError as error:
            raise UnreadableMessageError(f"no notice of a revoked task: {error}") from error

    def publication(self, topic: str) -> Publication:
        return Publication(topic, msgspec.json.encode(self), key=self.id)
