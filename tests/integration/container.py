"""``pulsartasks worker`` as a container runs it: process 1 of its own process table, with what else a test asks for.

The namespaces and control groups are the system's own, those of which container engines make containers; only the image
is not there.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from tests.conformance.processes import WorkerProcess
from tests.services import wait_until

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
USER = 10001
"""Of the images."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")

READ_ONLY = """
mount --make-rprivate /
for folder in $WRITABLE; do mount --bind "$folder" "$folder"; done
mount -o remount,bind,ro /
exec "$@"
"""
IN_GROUP = 'echo $$ > "$GROUP/cgroup.procs" && exec "$@"'


class Container(WorkerProcess):
    """A worker that is process 1.

    Args:
        arguments: of ``pulsartasks worker``.
        env: as for `WorkerProcess`.
        writable: folders on a file system that is else read-only, for a user who may do nothing special; None: all is
            writable.
        memory: the control group that limits its memory.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str],
        writable: Sequence[Path] | None = None,
        memory: Path | None = None,
    ) -> None:
        within, more = list(UNSHARE), dict(env)
        if writable is not None:
            within = ["unshare", "--mount", "sh", "-euc", READ_ONLY, "sh", *within]
            within += ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]
            more["WRITABLE"] = " ".join(map(str, writable))
        if memory is not None:
            within = ["sh", "-euc", IN_GROUP, "sh", *within]
            more["GROUP"] = str(memory)
        super().__init__(*arguments, env=more, within=within)

    @property
    def process_one(self) -> int:
        """The number that process 1 has outside."""
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(child)

    def terminate(self) -> None:
        os.kill(self.process_one, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of it at once, as a container ends that has used up its memory."""
        os.kill(self.process_one, signal.SIGKILL)
        self.wait()

    def told(self, name: str) -> str:
        """What the system tells of process 1 in a file below /proc."""
        return Path(f"/proc/{self.process_one}", name).read_text()

    def processes(self) -> dict[int, str]:
        """The state of each process in it ("Z": dead and not buried), by its number inside."""
        return dict(_inside(Path(f"/proc/{self.process_one}/ns/pid").readlink()))


def can_contain() -> bool:
    """Whether this machine lets us make namespaces, which is Linux's and mostly root's to allow."""
    try:
        return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _inside(table: Path) -> Iterator[tuple[int, str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/pid").readlink() == table:
                status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
                yield int(status["NSpid"].split()[-1]), status["State"][0]
        except OSError:
            pass  # it has ended meanwhile


@contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """A control group whose processes have so many bytes of memory together; beyond that the system kills one.

    Raises:
        OSError: groups cannot be made here.
    """
    unified = (CONTROL_GROUPS / "cgroup.controllers").exists()
    group = (CONTROL_GROUPS if unified else CONTROL_GROUPS / "memory") / f"pulsartasks-test-{uuid4().hex}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(size))
        swap, limit = ("memory.swap.max", 0) if unified else ("memory.memsw.limit_in_bytes", size)
        with suppress(OSError):  # nothing is swapped out here
            (group / swap).write_text(str(limit))
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group has members")
        group.rmdir()
