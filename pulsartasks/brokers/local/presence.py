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
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

_LONGEST_SOCKET_PATH = 100
"""Bytes: Linux allows 107, macOS 103."""


class Presence:
    """This process among those that use one database."""

    def __init__(self, database: Path) -> None:
        self.process = uuid4().hex
        self._folder = _folder(database)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bind()
        # Locked under another name first: nobody may see it unlocked and take this process for dead.
        unborn = self._path("new")
        self._lock = os.open(unborn, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unborn.rename(self._path("lock"))

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
            self._socket.sendto(news, socket.MSG_DONTWAIT, str(self._folder / f"{process}.sock"))

    def alive(self) -> set[str]:
        """The processes that are there; the files of those that are not are removed."""
        return {path.stem for path in self._folder.glob("*.lock") if path.stem == self.process or _is_held(path)}

    def leave(self) -> None:
        """Let go: from now on this process counts as gone."""
        self._socket.close()
        for kind in ("sock", "lock"):
            self._path(kind).unlink(missing_ok=True)
        os.close(self._lock)
        with contextlib.suppress(OSError):  # others are there
            self._folder.rmdir()

    def _bind(self) -> None:
        while True:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._socket.bind(str(self._path("sock")))
            except FileNotFoundError:  # the last to leave took the folder along at this very moment
                continue
            return

    def _path(self, kind: str) -> Path:
        return self._folder / f"{self.process}.{kind}"


def _folder(database: Path) -> Path:
    folder = database.with_name(database.name + "-processes")
    if len(os.fsencode(folder)) > _LONGEST_SOCKET_PATH - 40:
        # A socket's path is short; the folder goes where there is room, still one for each database and user.
        digest = hashlib.sha256(os.fsencode(database.resolve())).hexdigest()[:16]
        folder = Path(tempfile.gettempdir(), f"pulsartasks-{os.getuid()}-{digest}")
    return folder


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        path.unlink(missing_ok=True)
        path.with_suffix(".sock").unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)
