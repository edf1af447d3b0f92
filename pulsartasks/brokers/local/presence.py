"""Which processes use a local broker, and how they wake one another.

Each process holds a lock on a file of its own in a folder beside the database; the system releases it however the
process ends, so a lock that can be taken belongs to the dead (a process id could belong to somebody else by now). A
datagram socket of the same name takes news: the ids of subscriptions that something happened to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

T = TypeVar("T")

_TRIES = 100
_LONGEST_SOCKET_PATH = 100
"""Bytes: Linux allows 107, macOS 103."""


class Presence:
    """This process among those that use one database."""

    def __init__(self, database: Path) -> None:
        self.process = uuid4().hex
        self._folder = database.resolve().with_name(database.resolve().name + "-processes")
        self._sockets = _room_for_sockets(self._folder)
        self._lock: int | None = _make_in(self._folder, self._be_born)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            _make_in(self._sockets, lambda: self._socket.bind(str(self._path("sock"))))
        except BaseException:
            self.leave()
            raise
        # A forked child would hold the lock as well, and beyond the end of this process.
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(this()))

    def wait(self, timeout: float) -> set[int]:
        """The subscriptions that have news; empty after `timeout` seconds without any."""
        try:
            self._socket.settimeout(timeout)
            text = self._socket.recv(65_536).decode()
        except TimeoutError:
            return set()
        except OSError:  # closed while waiting
            return set()
        return {int(word) for word in text.split()}

    def wake(self, process: str, subscription_ids: Iterable[int]) -> None:
        """Tell `process`. What does not arrive is found by its check once a second."""
        news = " ".join(map(str, subscription_ids)).encode()
        with contextlib.suppress(OSError):  # it is gone, or has more news than it can take already
            self._socket.sendto(news, socket.MSG_DONTWAIT, str(self._path("sock", process)))

    def alive(self) -> set[str]:
        """The processes that are there; the files of those that are not are removed."""
        others = [path for path in self._folder.glob("*.lock") if path.stem != self.process]
        return {self.process, *(path.stem for path in others if self._is_held(path))}

    def leave(self) -> None:
        """Let go: from now on this process counts as gone."""
        self._socket.close()
        for kind in ("sock", "lock"):
            self._path(kind).unlink(missing_ok=True)
        self.let_go()
        for folder in {self._sockets, self._folder}:
            with contextlib.suppress(OSError):  # others are there
                folder.rmdir()

    def let_go(self) -> None:
        """Close the lock; it is free if no other process has it open."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _be_born(self) -> int:
        """The lock, held."""
        # Locked under another name first: nobody may see it unlocked and take this process for dead.
        unborn = self._path("new")
        lock = os.open(unborn, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        unborn.rename(self._path("lock"))
        return lock

    def _path(self, kind: str, process: str | None = None) -> Path:
        return (self._sockets if kind == "sock" else self._folder) / f"{process or self.process}.{kind}"

    def _is_held(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        except OSError:  # no more files can be opened, perhaps: nobody is taken for dead on a suspicion
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            path.unlink(missing_ok=True)
            self._path("sock", path.stem).unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)


def _make_in(folder: Path, make: Callable[[], T]) -> T:
    """Make something in `folder`, and that before; the last to leave may take it along at this very moment."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return make()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return make()


def _room_for_sockets(folder: Path) -> Path:
    """`folder`, or one of each user's for it where a path is short enough for sockets.

    Only sockets may be there, whose loss costs a second: a temporary folder may be another one for another process, and
    is cleaned up now and then.
    """
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_PATH - 40:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"pulsartasks-{os.getuid()}-{digest}")


def _let_go(presence: Presence | None) -> None:
    if presence is not None:
        presence.let_go()
