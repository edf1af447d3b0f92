"""What the set-up says, and the one error that ends it with a message instead of a traceback."""

from __future__ import annotations

import sys


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


def say(message: str) -> None:
    """Writes one line to the terminal at once, also when it is a pipe."""
    print(message, file=sys.stderr, flush=True)
