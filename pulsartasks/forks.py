"""Whether this process is still the one that something was made in.

`os.getpid` says so too, but is a system call, and this is asked several times for each message.
"""

from __future__ import annotations

import os


class Forks:
    """How many forks there were between the first process and this one."""

    def __init__(self) -> None:
        self.count = 0
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1


forks = Forks()
