"""A disk that can be filled and freed under a local broker: real where this machine lets us have one."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Collection
from pathlib import Path

SIZE = 16 * 1024 * 1024


class SmallDisk:
    """A file system of 16 MB in memory at `folder`; where it may not be mounted, a limit on the size of files instead.

    Both make writing to the database fail in the middle of its work: no space left on the device, or a file too large.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ballast = folder / "ballast"
        self.real = _mount(folder)

    def fill(self, processes: Collection[int], *, spare: int) -> None:
        """No further byte for the database; with a limit instead of a disk, none in files beyond `spare` bytes."""
        if not self.real:
            _limit(processes, spare)
            return
        with self._ballast.open("wb", buffering=0) as file:
            for size in (65_536, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self, processes: Collection[int]) -> None:
        """There is room again."""
        if self.real:
            self._ballast.unlink()
        else:
            _limit(processes, resource.RLIM_INFINITY)

    def close(self) -> None:
        if self.real:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _limit(processes: Collection[int], size: int) -> None:
    for pid in processes:
        try:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
        except ProcessLookupError:
            continue
